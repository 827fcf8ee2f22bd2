"""Every part of the check of a GPU runs on a CPU too, with tiny sizes, and passes."""

from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import table
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

# The least that each part finds.
LEAST = {"facts": 3, "attention": 3, "head": 6, "train": 6, "speed": 2, "trl": 2}


def findings(name: str, folder: str) -> list[tuple[str, str, float | str, bool]]:
    from benchmarks.gpu.checks import Setting
    from benchmarks.gpu.parts import PARTS

    return [(c.part, c.name, c.value, c.passed) for c in PARTS[name](Setting("cpu", True, folder))]


@pytest.mark.parametrize("name", LEAST)
def test_a_part_passes_on_a_cpu(name: str, tmp_path: Path):
    [found] = on_ranks(1, findings, name, str(tmp_path))
    assert len(found) >= LEAST[name]
    assert [check for check in found if not check[3]] == []


def test_a_check_outside_of_its_limit_fails():
    from benchmarks.gpu.checks import Check

    assert Check("a", "b", 0.5, 1.0).passed
    assert not Check("a", "b", 0.5, 1.0, least=True).passed
    assert not Check("a", "b", float("nan"), 1.0).passed
    assert not Check("a", "b", "broken", 1.0).passed
    assert table([{"part": "a", "name": "b", "value": 2.0, "limit": 1.0, "passed": False}]).row_count == 1
