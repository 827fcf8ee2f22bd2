"""The rooms of the operator and the trainer: which may import which, what each is for, and how large they may be."""

import ast
import itertools
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dpo_operator

pytestmark = pytest.mark.contract

ROOT = Path(__file__).parents[2]
PACKAGES = {"dpo_operator": ROOT / "operator" / "dpo_operator", "dpo_trainer": ROOT / "trainer_image" / "dpo_trainer"}
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
CONTRACTS: dict[str, dict[str, Any]] = {contract["name"]: contract for contract in SETTINGS["contracts"]}
LAYERS = {"dpo_operator": "operator layers", "dpo_trainer": "trainer layers"}

MOST_FILES, MOST_LINES, MOST_FUNCTION_LINES = 20, 350, 80
# Exceptions, each with its reason.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
FULL_FOLDERS = {
    "dpo_operator/planning": "one file for each policy",
}


def floors(package: str) -> list[list[str]]:
    """The rooms of each floor, from the top."""
    return [[room.strip() for room in floor.split("|")] for floor in CONTRACTS[LAYERS[package]]["layers"]]


def probes() -> Iterator[tuple[str, str]]:
    """An upward import for each room that has a floor above it, and one to the side for each that has a neighbour."""
    for package in PACKAGES:
        rooms = floors(package)
        for above, floor in itertools.pairwise(rooms):
            for room in floor:
                yield f"{package}.{room}", f"{package}.{above[0]}"
        for floor in rooms:
            for room, beside in itertools.pairwise(floor):
                yield f"{package}.{room}", f"{package}.{beside}"


PROBES = sorted(set(probes()))
CLIENTS = [
    ("dpo_operator.cli", "aiohttp"),
    ("dpo_operator.metrics", "kubernetes"),
    ("dpo_operator.reconcile", "kopf"),
    ("dpo_operator.kube", "prometheus_client"),
    ("dpo_trainer.telemetry", "torch"),
    ("dpo_trainer.runtime", "dpo_operator.kube"),
]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """lint-imports on the packages in a folder, with the project's own contracts."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "1000", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def copy_to(folder: Path) -> Path:
    for package, source in PACKAGES.items():
        shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def import_from(folder: Path, importer: str, imported: str) -> None:
    """Add an import to a room: to a module of its own in a folder, at the end of a room that is a file."""
    path = folder.joinpath(*importer.split("."))
    path = path / "probe.py" if path.is_dir() else path.with_suffix(".py")
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\nimport {imported}\n")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What lint-imports prints about a copy with all probes and a room that no contract lists."""
    folder = copy_to(tmp_path_factory.mktemp("probes"))
    for importer, imported in (*PROBES, *CLIENTS):
        import_from(folder, importer, imported)
    for package in PACKAGES:
        (folder / package / "unlisted").mkdir()
        (folder / package / "unlisted" / "__init__.py").touch()
    done = lint(folder)
    assert done.returncode == 1, done.stderr
    return done.stdout


def test_a_copy_without_probes_keeps_all_contracts(tmp_path: Path):
    """Negative control: the report is about the probes."""
    done = lint(copy_to(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("importer", "imported"), [*PROBES, *CLIENTS])
def test_an_import_that_breaks_a_contract_is_named(report: str, importer: str, imported: str):
    assert re.search(rf"\b{re.escape(importer)}(\.probe)? -> {re.escape(imported)}\b", report), report[-4000:]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_that_no_contract_lists_is_named(report: str, package: str):
    assert re.search(rf"{package}\.unlisted|- unlisted", report), report[-4000:]


@pytest.mark.parametrize("package", PACKAGES)
def test_layers_are_exhaustive(package: str):
    contract = CONTRACTS[LAYERS[package]]
    assert contract["type"] == "layers"
    assert contract["containers"] == [package]
    assert contract["exhaustive"] is True
    assert "ignore_imports" not in contract
    rooms = [room for floor in floors(package) for room in floor]
    assert sorted(rooms) == sorted(m.name for m in pkgutil.iter_modules([str(PACKAGES[package])]))


def test_the_trainer_may_import_only_the_api_of_the_operator():
    """The trainer's image has no other folder of it."""
    contract = CONTRACTS["the trainer knows the API and nothing else of the operator"]
    assert contract["source_modules"] == ["dpo_trainer"]
    ours = {name for name in contract["forbidden_modules"] if name.startswith("dpo_operator")}
    others = {f"dpo_operator.{module.name}" for module in pkgutil.iter_modules(dpo_operator.__path__)}
    assert ours == others - {"dpo_operator.api"}


FOLDERS = [path.parent for source in PACKAGES.values() for path in sorted(source.rglob("__init__.py"))]
FILES = [path for folder in FOLDERS for path in sorted(folder.glob("*.py"))]


def place(path: Path) -> str:
    """Path from the folder of the packages."""
    return str(path.relative_to(ROOT / ("operator" if "operator" in path.relative_to(ROOT).parts else "trainer_image")))


@pytest.mark.parametrize("folder", FOLDERS, ids=place)
def test_a_room_says_on_one_line_what_it_is_for(folder: Path):
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert text, "the docstring is missing"
    assert text.splitlines()[0].endswith(".")


def test_no_folder_has_more_than_20_files():
    full = {place(folder) for folder in FOLDERS if len(list(folder.glob("*.py"))) - 1 > MOST_FILES}
    assert full == FULL_FOLDERS.keys()


def test_no_module_has_more_than_350_lines():
    lines = {place(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: count for name, count in lines.items() if count > MOST_LINES and name not in LONG_FILES} == {}
    assert all(lines[name] > MOST_LINES for name in LONG_FILES), "an exception is not needed any more"


def test_no_function_has_more_than_80_lines():
    long = {
        f"{place(path)}:{node.name}": size
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (size := (node.end_lineno or 0) - node.lineno + 1) > MOST_FUNCTION_LINES
    }
    assert {name: size for name, size in long.items() if name not in LONG_FUNCTIONS} == {}
    assert long.keys() >= LONG_FUNCTIONS.keys(), "an exception is not needed any more"
