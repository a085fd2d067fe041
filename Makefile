# Everything a person types. A fresh machine needs Linux, python3 (3.11 to 3.13) and a package index, nothing else.

PYTHON ?= python3
BIN := .venv/bin
FILE ?= pipeline/runs/digits.yaml
SET ?=
OUTPUT ?= outputs

PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadscope --no-loadscope-reorder
SLOWEST := --durations 10 --durations-min 1

.DEFAULT_GOAL := help
.PHONY: help run ui profile test test-slow test-cluster check format coverage bench manifests lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  FILE=pipeline/runs/cifar10.yaml SET="train.images=1_000_000 ..."   of run, profile: another run file, its keys'
	@echo '  OUTPUT=folder    of ui: where runs lie      PYTHON=python3.12    of the first make: the Python of .venv'

run: .venv/installed ## Pack, train, sample, score and register
	@$(BIN)/python -m pipeline run $(FILE) $(SET)

ui: .venv/installed ## The MLflow UI on what has been run so far, at http://127.0.0.1:5000
	@test -f $(OUTPUT)/mlflow.db || { echo "$(OUTPUT)/mlflow.db: nothing has been run yet; make run"; exit 1; }
	@$(BIN)/mlflow ui --backend-store-uri sqlite:///$(abspath $(OUTPUT))/mlflow.db --host 127.0.0.1 --port 5000

profile: .venv/installed ## Where the time of a training step goes: a page and a trace
	@$(BIN)/python -m pipeline profile $(FILE) $(SET)

test: .venv/installed ## The test suite, and which ten tests took longest
	@$(BIN)/pytest -m "not slow and not cluster" $(PARALLEL) $(SLOWEST)

test-slow: .venv/installed ## More processes killed, in the middle of training and sampling
	@$(BIN)/pytest -m slow $(PARALLEL) $(SLOWEST)

test-cluster: .venv/installed ## A job on two hosts, as network namespaces of this one (root): a link is cut, a host comes
	@$(BIN)/pytest -m cluster

check: .venv/installed ## Format, lint, types, architecture: what CI and the pre-commit hook ask for
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/pytest tests/test_architecture.py

format: .venv/installed ## Format the code and mend what the linter can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

coverage: .venv/installed ## Which branches the test suite goes through, in all processes; of model/ every one, or it fails
	@echo $(CURDIR)/tests/coverage > $$($(BIN)/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/a0_worker_coverage.pth
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -m "not slow and not cluster" $(PARALLEL)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --omit "model/*"
	@$(BIN)/coverage report --include "model/*" --fail-under 100

bench: .venv/installed ## Speed, as ratios measured in one run; machine otherwise idle
	@$(BIN)/python tests/benchmarks/step.py
	@$(BIN)/python tests/benchmarks/training.py
	@$(BIN)/python tests/benchmarks/reader.py
	@$(BIN)/python tests/benchmarks/index.py
	@$(BIN)/python tests/benchmarks/recovery.py
	@$(BIN)/python tests/benchmarks/sampling.py
	@$(BIN)/python tests/benchmarks/frechet.py
	@$(BIN)/python tests/benchmarks/scoring.py
	@$(BIN)/python tests/benchmarks/scoring_memory.py

manifests: .venv/installed ## Render infra/kubernetes into build/manifests, and check what was rendered
	@$(BIN)/python tests/infra/manifests.py build/manifests

lock: .venv/installed ## Resolve the ranges of pyproject.toml to the exact versions of infra/requirements.lock
	@$(BIN)/uv pip compile pyproject.toml --extra dev --extra server --upgrade --quiet --python-version 3.11 \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links -o infra/requirements.lock

clean: ## Remove the environment and caches; outputs/ stays
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* *.egg-info build

# uv is several times faster than pip; where it does not know the index that pip was told of, pip does it.
.venv/installed: pyproject.toml infra/requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit(f"python3 is {v[0]}.{v[1]}; this project needs 3.11 to 3.13: make PYTHON=python3.11 ...")'
	@echo "installing into .venv (several GB; minutes on a slow line)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@VIRTUAL_ENV=$(abspath .venv) $(BIN)/uv pip install --quiet -r infra/requirements.lock \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check -r infra/requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@
