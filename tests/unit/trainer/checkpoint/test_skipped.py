"""The record of skipped steps outlives the process, and a damaged one is an error."""

from pathlib import Path

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.checkpoint.skipped import remember_skipped, skipped
from dpo_trainer.runtime.errors import TrainerError

pytestmark = pytest.mark.unit


def test_the_last_record_counts(tmp_path: Path):
    assert skipped(tmp_path) == []
    remember_skipped(tmp_path, [4])
    remember_skipped(tmp_path, [4, 2])
    assert skipped(tmp_path) == [4, 2]


@pytest.mark.parametrize("content", ["", "{}", "[1.5]", "[true]", "[0]", "[" * 100_000])
def test_a_damaged_record_names_the_repair(tmp_path: Path, content: str):
    (tmp_path / "skipped.json").write_text(content)
    with pytest.raises(TrainerError, match=r"skipped\.json: expected a list of steps.*delete that file") as failure:
        skipped(tmp_path)
    assert failure.value.exit_code is ExitCode.VOLUME_ERROR
