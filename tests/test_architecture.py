"""The tree is what the README says it is: who may import whom, which names exist, what lies at the top."""

import ast
import importlib
import sys
from importlib.metadata import distribution
from pathlib import Path
from subprocess import run

import pytest

ROOT = Path(__file__).resolve().parents[1]
IMPORT_NAMES = ["model", "evaluation", "pipeline"]
FOLDERS = {*IMPORT_NAMES, "infra", "tests"}
FILES = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "pyproject.toml"}
MODEL_MAY_IMPORT = {"torch", "numpy", "pydantic"}
OUTSIDE_WORLD = {"os", "pathlib", "io", "shutil", "tempfile", "subprocess", "socket", "logging", "sys"}
EVALUATION_NEVER_IMPORTS = {"pipeline", "ray", "mlflow", "webdataset"}


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package}/ has no Python file"
    return found


def imports(source: Path) -> set[str]:
    """First names of all absolute imports of a file, also of those within functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).partition(".")[0])
    return names


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


@pytest.mark.parametrize("package", IMPORT_NAMES)
def test_the_readme_tree_names_every_file(package: str) -> None:
    tree_text = (ROOT / "README.md").read_text().partition("## The tree")[2].partition("\n## ")[0]
    part = tree_text.partition(f"\n{package}/")[2]
    missing = [path.name for path in sources(package) if path.name != "__init__.py" and path.name not in part]
    assert not missing, f"README.md, The tree: {package}/ has {missing}"


def test_top_level_holds_the_known_entries_only() -> None:
    entries = {path.parts[0] for path in tree()}
    strangers = {entry for entry in entries - FOLDERS - FILES if not entry.startswith(".")}
    assert not strangers, f"unknown entries at the top of the tree: {sorted(strangers)}"


def test_no_file_is_named_for_being_useful() -> None:
    vague = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert not [path for path in tree() if path.stem in vague or vague & set(path.parts)]


def test_public_names_of_model_are_all_that_it_imports() -> None:
    source = ast.parse((ROOT / "model" / "__init__.py").read_text())
    imported = [alias.name for node in source.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    public = importlib.import_module("model").__all__
    assert sorted(public) == sorted(imported)
    assert public == sorted(public, key=lambda name: (not name.isupper(), name[0].islower(), name))
