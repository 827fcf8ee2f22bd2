"""The picture and the table of a run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_operator.api.reports import Progress
from dpo_trainer import outcome
from dpo_trainer.report import read_run, report
from dpo_trainer.workdir import WorkDir

pytestmark = pytest.mark.unit


def a_run(folder: Path, steps: int, *, evaluations: bool = True) -> WorkDir:
    work = WorkDir(folder)
    with work.metrics.open("w") as file:
        for step in range(1, steps + 1):
            margin = 0.02 * step
            line = {
                "loss": 0.69 - 0.01 * step, "rewards/chosen": margin / 2, "rewards/rejected": -margin / 2,
                "rewards/margins": margin, "rewards/accuracies": 0.75,
            }  # fmt: skip
            file.write(json.dumps({"step": step, **line, "pairs": 16 if step < 10 else 6, "step_seconds": 2.0}) + "\n")
            if evaluations and step % 5 == 0:
                file.write(json.dumps({"step": step, **{f"eval_{k}": v for k, v in line.items()}}) + "\n")
    return work


def test_the_table_tells_where_it_began_and_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    work = a_run(tmp_path, 10)
    work.export.mkdir()
    report(work)
    said = capsys.readouterr().out

    rows = {
        cells[0].strip(): [c.strip() for c in cells[1:]]
        for line in said.splitlines()
        if len(cells := line.strip("│").split("│")) == 5
    }
    assert rows["loss"] == ["0.6800", "0.5900", "0.6400", "0.5900"]
    assert rows["reward accuracy"] == ["75.0%"] * 4
    assert "training time: 20s in 10 logged steps, 7.5 pairs/s" in said
    assert f"export: {work.export}" in said
    assert "restarts" not in said


def test_a_margin_that_rounding_left_below_zero_is_shown_as_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    work = WorkDir(tmp_path)
    line = {"step": 1, "loss": 0.6931, "rewards/margins": -2e-8, "rewards/chosen": -1e-8, "rewards/rejected": -0.0}
    work.metrics.write_text(json.dumps(line) + "\n")
    report(work)
    said = capsys.readouterr().out
    assert said.count(" 0.0000 ") == 3
    assert "-0.0" not in said


@pytest.mark.parametrize(("steps", "evaluations"), [(1, False), (10, True), (200, True)])
def test_the_picture_is_a_png_of_its_size(tmp_path: Path, steps: int, evaluations: bool):
    report(a_run(tmp_path, steps, evaluations=evaluations))
    picture = (tmp_path / "report" / "report.png").read_bytes()

    assert picture.startswith(b"\x89PNG")
    assert (int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")) == (1500, 960)
    assert [p.name for p in (tmp_path / "report").iterdir()] == ["report.png"]


def test_restarts_are_known_from_the_last_words(tmp_path: Path):
    work = a_run(tmp_path, 10)
    for attempt, resumed in ((1, None), (2, 4), (3, 10)):
        progress = Progress(phase="train", attempt=attempt, resumed_from_step=resumed)
        words = outcome.termination("train", attempt, 0, progress=progress)
        outcome.write_termination(tmp_path / f"termination-train-{attempt}-0.json", words)

    # Attempt 3 found the run finished and did nothing.
    assert read_run(work).restarts == (4,)


def test_without_matplotlib_there_is_still_the_table(tmp_path: Path):
    a_run(tmp_path, 3)
    body = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path; from dpo_trainer.report import report; from dpo_trainer.workdir import WorkDir\n"
        f"report(WorkDir(Path({str(tmp_path)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=True)

    assert "reward margin" in done.stdout
    assert done.stderr.strip() == "No picture: matplotlib is not installed (pip install matplotlib)."


def test_nothing_to_report_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report(WorkDir(tmp_path))

    assert "no steps yet" in capsys.readouterr().err
