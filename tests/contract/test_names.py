"""Where tests lie and how long their names may be."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

TESTS = Path(__file__).parents[1]
UNIT = TESTS / "unit"
LONGEST_NAME = 70
# Tests of several rooms together, with the reason.
ACROSS_ROOMS = {
    "trainer/runtime/test_libraries.py": "through the two callers, a phase and a command",
    "trainer/sources/test_cache.py": "through processes",
    "trainer/test_phases.py": "through processes",
}
# Folders whose room is in neither package.
ELSEWHERE = {"benchmarks": "benchmarks", "campaign": "tests.campaign", "rig": "tests.cluster.rig"}


def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(TESTS.rglob("test_*.py"))}


def test_no_name_of_a_test_is_longer_than_70_characters():
    functions = (
        (path, node.name)
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )
    assert [f"{path.relative_to(TESTS)}: {name}" for path, name in functions if len(name) > LONGEST_NAME] == []


def imported(tree: ast.Module) -> set[str]:
    """Modules and what is imported from them, with dots, wherever the import stands."""
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room_of(path: Path) -> str:
    """The room whose folder a unit test lies in: tests/unit/kube is dpo_operator.kube, tests/unit/trainer/data is
    dpo_trainer.data, and a file at the top is about the module of its name."""
    parts = path.relative_to(UNIT).with_suffix("").parts
    package, parts = ("dpo_trainer", parts[1:]) if parts[0] == "trainer" else ("dpo_operator", parts)
    if parts[0] in ELSEWHERE:
        return ELSEWHERE[parts[0]]
    return f"{package}.{parts[0].removeprefix('test_')}"


def test_unit_tests_lie_in_the_folder_of_a_room_that_they_import():
    stray = {
        str(path.relative_to(UNIT)): room_of(path)
        for path, tree in trees().items()
        if path.is_relative_to(UNIT) and not any(f"{name}.".startswith(f"{room_of(path)}.") for name in imported(tree))
    }
    assert stray.keys() == ACROSS_ROOMS.keys(), stray
