"""The tree is what the README says it is: who may import whom, which names exist, what lies at the top; and its habits:
what is documented, what is checked before a commit, what is let pass and why.
"""

import ast
import importlib
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from subprocess import run

import pytest
import yaml
from setuptools import find_packages

from pipeline.runfile.config import Config
from pipeline.runfile.configfile import load
from pipeline.runfile.keys import key_table

ROOT = Path(__file__).resolve().parents[1]
IMPORT_NAMES = ["model", "evaluation", "pipeline"]
FOLDERS = {*IMPORT_NAMES, "infra", "tests"}
FILES = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "pyproject.toml"}
MODEL_MAY_IMPORT = {"torch", "numpy", "pydantic"}
OUTSIDE_WORLD = {"os", "pathlib", "io", "shutil", "tempfile", "subprocess", "socket", "logging", "sys"}
EVALUATION_NEVER_IMPORTS = {"pipeline", "ray", "mlflow", "webdataset"}
FLOW = ["data", "models", "training", "features", "sampling", "scoring", "registration", "sweeps", "nights"]
"""Rooms of `pipeline` in the order in which images pass through them."""
KNOW_THE_FLOW = {"sweeps", "nights"}
"""Rooms that may import `pipeline/flow.py`, which imports the others."""
DOCUMENTED = ["model", "evaluation"]
"""Packages with public names; `pipeline` is a program."""
LETS_PASS = re.compile(r"# *(type: *ignore|noqa|pragma: *no)")
WITH_CODE_AND_REASON = re.compile(r"# (type: ignore\[[\w, -]+\]|noqa: [A-Z0-9, ]+)  # \S.*")


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package}/ has no Python file"
    return found


def modules(source: Path) -> set[str]:
    """All absolute imports of a file, also of those within functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module))
    return names


def imports(source: Path) -> set[str]:
    """Their first names."""
    return {name.partition(".")[0] for name in modules(source)}


def calls(source: Path) -> set[str]:
    """Names of all functions that a file calls by a bare name."""
    nodes = ast.walk(ast.parse(source.read_text()))
    return {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def tree() -> list[Path]:
    """Files of the tree that git does not ignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [Path(line) for line in listing.stdout.splitlines()]


@pytest.mark.parametrize("source", sources("model"), ids=lambda path: path.name)
def test_model_imports_mathematics_only(source: Path) -> None:
    """Itself by relative imports alone: its files also travel, by another name, with every registered model."""
    strangers = imports(source) - MODEL_MAY_IMPORT - sys.stdlib_module_names
    assert not strangers, f"{source.name} imports {sorted(strangers)}"


@pytest.mark.parametrize("source", sources("model"), ids=lambda path: path.name)
def test_model_touches_no_file_no_environment_and_no_terminal(source: Path) -> None:
    assert not imports(source) & OUTSIDE_WORLD
    assert not calls(source) & {"open", "print", "input"}


@pytest.mark.parametrize("source", sources("evaluation"), ids=lambda path: path.name)
def test_evaluation_knows_neither_the_cluster_nor_the_registry(source: Path) -> None:
    strangers = imports(source) & EVALUATION_NEVER_IMPORTS
    assert not strangers, f"{source.name} imports {sorted(strangers)}"


def rooms_used(source: Path) -> set[str]:
    """What a file in a room of `pipeline` imports from outside of that room: other rooms, and files beside them."""
    nodes = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.ImportFrom)]
    assert not [node for node in nodes if node.level == 0 and str(node.module).partition(".")[0] == "pipeline"], source
    outside = [node for node in nodes if node.level == 2]
    named = {str(node.module).partition(".")[0] for node in outside if node.module}
    return named | {alias.name for node in outside if not node.module for alias in node.names}


@pytest.mark.parametrize("room", FLOW)
def test_a_room_of_the_pipeline_knows_none_that_comes_after_it(room: str) -> None:
    later = {*FLOW[FLOW.index(room) + 1 :]} | ({"flow"} if room not in KNOW_THE_FLOW else set())
    backwards = {path.name: found for path in sources(f"pipeline/{room}") if (found := rooms_used(path) & later)}
    assert not backwards
    assert room == FLOW[0] or any(rooms_used(path) for path in sources(f"pipeline/{room}"))


@pytest.mark.parametrize("source", sources("pipeline/tracking"), ids=lambda path: path.name)
def test_how_mlflow_is_spoken_to_knows_none_of_the_rooms_that_speak(source: Path) -> None:
    assert not rooms_used(source) & {*FLOW, "stage", "flow", "summary", "runfile", "clusters", "doctor", "planning"}


def test_forbidden_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    source = tmp_path / "sample.py"
    source.write_text("import a.b\nfrom c.d import e\nfrom . import f\ndef g():\n    import h as i\n    print(1)\n")
    assert imports(source) == {"a", "c", "h"}
    assert calls(source) == {"print"}


@pytest.mark.parametrize("name", IMPORT_NAMES)
def test_import_name_resolves_to_this_tree(name: str) -> None:
    assert Path(str(importlib.import_module(name).__file__)) == ROOT / name / "__init__.py"


def test_distribution_is_named_and_provides_the_three_names() -> None:
    installed = distribution("diffusion-pipeline")
    assert installed.metadata["Name"] == "diffusion-pipeline"
    provided = (installed.read_text("top_level.txt") or "").split()
    assert sorted(provided) == sorted(IMPORT_NAMES)


def readme_tree() -> dict[str, str]:
    """What README.md, The tree, says of each top folder."""
    text = (ROOT / "README.md").read_text().partition("## The tree")[2].partition("\n## ")[0]
    parts = re.split(r"^(\w+)/", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("package", IMPORT_NAMES)
def test_the_readme_tree_names_every_file_in_its_folder(package: str) -> None:
    before, *rooms = re.split(r"^  (\w+)/", readme_tree()[package], flags=re.MULTILINE)
    told = {package: before} | {f"{package}/{room}": text for room, text in zip(rooms[::2], rooms[1::2], strict=True)}
    for folder in {path.parent.relative_to(ROOT) for path in sources(package)}:
        there = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
        assert there == set(re.findall(r"\w+\.py", told[str(folder)])), f"README.md, The tree: {folder}/"


def test_every_folder_of_python_is_packed() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        include = tomllib.load(file)["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {path.parent.relative_to(ROOT) for package in IMPORT_NAMES for path in sources(package)}
    assert sorted(find_packages(str(ROOT), include=include)) == sorted(".".join(folder.parts) for folder in folders)


@pytest.mark.parametrize("folder", readme_tree())
def test_the_readme_tree_names_no_file_that_is_gone(folder: str) -> None:
    gone = [
        name
        for name in re.findall(r"[\w-]+\.(?:py|yaml)", readme_tree()[folder])
        if not any((ROOT / folder).rglob(name))
    ]
    assert not gone, f"README.md, The tree: {folder}/ has no {gone}"


def test_top_level_holds_the_known_entries_only() -> None:
    entries = {path.parts[0] for path in tree()}
    strangers = {entry for entry in entries - FOLDERS - FILES if not entry.startswith(".")}
    assert not strangers, f"unknown entries at the top of the tree: {sorted(strangers)}"


def test_no_file_is_named_for_being_useful() -> None:
    vague = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert not [path for path in tree() if path.stem in vague or vague & set(path.parts)]


# Public names.


def public(package: str) -> dict[str, Path]:
    """The names that a package's `__init__` imports, and the file that each is from."""
    folder = ROOT / package
    nodes = ast.parse((folder / "__init__.py").read_text()).body
    return {
        alias.name: folder / f"{node.module}.py"
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def documented(source: Path) -> set[str]:
    """Names at a file's top level with a docstring: within a class or function, below an assignment."""
    names: set[str] = set()
    body = ast.parse(source.read_text()).body
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        match node, after:
            case ((ast.ClassDef() | ast.FunctionDef()), _) if ast.get_docstring(node):
                names.add(node.name)
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str())):
                names.add(name)
    return names


@pytest.mark.parametrize("package", DOCUMENTED)
def test_public_names_are_all_that_a_package_imports_in_order(package: str) -> None:
    names = importlib.import_module(package).__all__
    assert sorted(names) == sorted(public(package))
    assert names == sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))


@pytest.mark.parametrize("package", DOCUMENTED)
def test_every_public_name_has_a_docstring(package: str) -> None:
    silent = [name for name, source in public(package).items() if name not in documented(source)]
    assert not silent, f"{package} exports without a docstring: {silent}"


@pytest.mark.parametrize("package", ["evaluation", "pipeline"])
def test_only_public_names_of_model_are_used_outside(package: str) -> None:
    private = {source.name: name for source in sources(package) for name in modules(source) if name[:6] == "model."}
    assert not private, f"imported by the back door: {private}; export from model what is missing there"


def test_what_the_pages_import_exists() -> None:
    for page in (ROOT / path for path in tree() if path.suffix == ".md"):
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in IMPORT_NAMES:
                    module = importlib.import_module(str(node.module))
                    unknown = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                    assert not unknown, f"{page.name}: {node.module} has no {unknown}"


# Run files.


def test_every_key_and_kind_of_a_run_file_has_help() -> None:
    silent = [f"{row.key} {row.kind}" for row in key_table(Config) if not row.help]
    assert not silent, f"without a docstring: {silent}"


@pytest.mark.parametrize("file", sorted((ROOT / "pipeline/runs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_run_file_loads(file: Path) -> None:
    assert load(file, [], Config).name == file.stem


# Habits.


def comments(source: Path) -> Iterator[tuple[int, str]]:
    with source.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


@pytest.mark.parametrize("folder", [*IMPORT_NAMES, "tests"])
def test_what_a_checker_is_told_to_let_pass_has_its_code_and_reason(folder: str) -> None:
    bare = [
        f"{source.relative_to(ROOT)}:{line}: {comment}"
        for source in sources(folder)
        for line, comment in comments(source)
        if LETS_PASS.search(comment) and not WITH_CODE_AND_REASON.fullmatch(comment)
    ]
    assert not bare, "\n".join(bare)


@pytest.mark.parametrize(
    ("comment", "right"),
    [
        ("# type: ignore[misc]  # it has no types", True),
        ("# noqa: E402, F401  # for its warning", True),
        ("# type: ignore  # it has no types", False),
        ("# type: ignore[misc]", False),
        ("# noqa  # as all of them", False),
        ("# pragma: no cover", False),
    ],
)
def test_a_code_without_reason_is_found_and_a_reason_without_code(comment: str, right: bool) -> None:
    assert LETS_PASS.search(comment)
    assert bool(WITH_CODE_AND_REASON.fullmatch(comment)) == right


def test_the_pre_commit_hook_and_ci_run_make_check() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"  # nothing to fetch
    assert [hook["entry"] for hook in repository["hooks"]] == ["make check"]
    assert "make check" in (ROOT / ".ci/run").read_text().splitlines()


def test_make_help_has_a_line_for_every_target_and_fits_a_terminal() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert targets
    lines = run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("  make ")] == targets[1].split()
    assert max(map(len, lines)) <= 120
