"""The picture and the table of a run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import Progress, PushReport
from dpo_trainer import phases
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.manifest import MANIFEST, File, Manifest
from dpo_trainer.commands.report import report
from dpo_trainer.commands.run_log import Best, read_run
from dpo_trainer.runtime import termination
from dpo_trainer.runtime.workdir import WorkDir
from tests.unit.trainer.checkpoints import loop_state

pytestmark = pytest.mark.unit


def a_run(
    folder: Path,
    steps: int,
    *,
    evaluations: bool = True,
    start: float | None = None,
    metrics: dict[str, float | None] | None = None,
) -> WorkDir:
    work = WorkDir(folder)
    with work.metrics.open("w") as file:
        for step in range(1, steps + 1):
            margin = 0.02 * step
            line = {
                "loss": 0.69 - 0.01 * step, "rewards/chosen": margin / 2, "rewards/rejected": -margin / 2,
                "rewards/margins": margin, "rewards/accuracies": 0.75, **(metrics or {}),
            }  # fmt: skip
            if step == 1 and start is not None:
                line["initial_loss"] = start
            file.write(json.dumps({"step": step, **line, "pairs": 16 if step < 10 else 6, "step_seconds": 2.0}) + "\n")
            if evaluations and step % 5 == 0:
                file.write(json.dumps({"step": step, **{f"eval_{k}": v for k, v in line.items()}}) + "\n")
    return work


@pytest.mark.parametrize(
    ("to", "whole", "merged"),
    [
        ("s3://b/out", "vllm serve s3://b/out --load", "vllm serve s3://b/out/merged --load"),
        ("hf://org/name", "vllm serve org/name", 'from_pretrained("org/name", subfolder="merged")'),
    ],
)
def test_servers_are_told_where_the_pushed_model_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, whole: str, merged: str
):
    work = a_run(tmp_path, 1)
    work.pushed.write_text(PushReport(to=to, digest="0" * 64).model_dump_json())
    for folder, expected, other in ((work.export, whole, merged), (work.export / "merged", merged, whole)):
        folder.mkdir()
        (folder / "config.json").touch()
        report(work)
        printed = capsys.readouterr().out
        assert expected in " ".join(printed.split())
        (folder / "config.json").unlink()
        assert other not in " ".join(printed.split())


def test_the_table_shows_the_first_and_last_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    work = a_run(tmp_path, 10)
    work.export.mkdir()
    report(work)
    printed = capsys.readouterr().out

    rows = {
        cells[0].strip(): [c.strip() for c in cells[1:]]
        for line in printed.splitlines()
        if len(cells := line.strip("│").split("│")) == 5
    }
    assert rows["loss"] == ["0.6800", "0.5900", "0.6400", "0.5900"]
    assert rows["reward accuracy"] == ["75.0%"] * 4
    assert "training time: 20s in 10 logged steps, 7.5 pairs/s" in printed
    assert f"export: {work.export}" in printed
    assert "restarts" not in printed


def test_the_table_says_where_a_margin_means_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report(a_run(tmp_path, 10, metrics={"rewards/margins": 0.001}))
    assert capsys.readouterr().out.count(" near 0)") == 4


def test_a_margin_of_minus_zero_is_shown_as_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    work = WorkDir(tmp_path)
    line = {"step": 1, "loss": 0.6931, "rewards/margins": -2e-8, "rewards/chosen": -1e-8, "rewards/rejected": -0.0}
    work.metrics.write_text(json.dumps(line) + "\n")
    report(work)
    printed = capsys.readouterr().out
    assert printed.count(" 0.0000 ") == 3
    assert "-0.0" not in printed


@pytest.mark.parametrize(("steps", "evaluations"), [(1, False), (10, True), (200, True)])
def test_the_picture_is_a_png_of_its_size(tmp_path: Path, steps: int, evaluations: bool):
    report(a_run(tmp_path, steps, evaluations=evaluations))
    picture = (tmp_path / "report" / "report.png").read_bytes()

    assert picture.startswith(b"\x89PNG")
    assert (int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")) == (1500, 1380)
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == ["report.html", "report.png", "report.txt"]


def test_the_text_file_has_what_was_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "100")
    report(a_run(tmp_path, 10))
    printed = capsys.readouterr().out
    text = (tmp_path / "report" / "report.txt").read_text()

    assert "reward margin" in text
    folder = tmp_path / "report"
    assert printed == f"{text}picture: {folder / 'report.png'}\npage: {folder / 'report.html'}\n"


def test_restarts_are_read_from_termination_files(tmp_path: Path):
    work = a_run(tmp_path, 10)
    for attempt, resumed in ((1, None), (2, 4), (3, 10)):
        progress = Progress(phase="train", attempt=attempt, resumed_from_step=resumed)
        message = termination.build_termination("train", attempt, 0, progress=progress)
        termination.write_termination(tmp_path / f"termination-train-{attempt}-0.json", message)

    # Attempt 3 found the run finished and did nothing.
    assert read_run(work).restarts == (4,)


def keep(work: WorkDir, step: int, **loop: Any) -> None:
    """A checkpoint's manifest, as the training loop leaves it."""
    folder = work.checkpoints / layout.folder_name(step)
    folder.mkdir(parents=True)
    manifest = Manifest(
        step=step, attempt=1, world_size=1, time=1.0, identity={}, parameters={}, adam_step=step,
        files={layout.shard_name(0): File(size=1, sha256="0" * 64)}, state=loop_state(step, **loop),
        metrics={"loss": 0.5}, versions={},
    )  # fmt: skip
    (folder / MANIFEST).write_bytes(manifest.to_bytes())


def test_an_early_stop_and_the_best_evaluation_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    work = a_run(tmp_path, 20)
    ending = "Stopped early after step 20 of 60: eval_reward_margin has not improved since step 10."
    keep(
        work, 20, total_steps=60, finished=ending, selection_metric="eval_reward_margin",
        evaluations=[[5, -0.1], [10, -0.2], [15, None], [20, -0.15]],
    )  # fmt: skip
    run = read_run(work)
    assert (run.early, run.ending) == (True, ending)
    assert run.best == Best(10, "eval_reward_margin", 0.2)
    report(work)
    printed = capsys.readouterr().out

    assert f"ending: {ending}" in printed
    assert "best evaluation: step 10, eval_reward_margin 0.2000" in printed
    assert "step 10, best" in printed


def test_a_run_to_its_planned_end_is_not_early(tmp_path: Path):
    work = a_run(tmp_path, 10)
    keep(work, 10, total_steps=10, finished="Trained 10 steps.", selection_metric="eval_loss", evaluations=[])
    run = read_run(work)
    assert (run.early, run.ending, run.best) == (False, "Trained 10 steps.", None)


def test_only_methods_with_a_known_initial_loss_get_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import matplotlib.axes

    lines: list[float] = []
    names: list[str] = []
    monkeypatch.setattr(matplotlib.axes.Axes, "axhline", lambda _, y, **__: lines.append(y))
    monkeypatch.setattr(matplotlib.axes.Axes, "annotate", lambda _, text, *__, **___: names.append(text))
    for start in (None, 0.693147, 25.0):
        work = a_run(tmp_path, 3, evaluations=False, start=start)
        report(work)
    assert (lines, names) == ([0.693147, 25.0], ["ln 2", "start 25"])


def test_unpaired_answers_have_no_margin_and_still_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    work = a_run(tmp_path, 6, metrics={"rewards/margins": None, "rewards/chosen": None, "kl": 0.2})
    report(work)
    rows = {
        cells[0].strip(): [c.strip() for c in cells[1:]]
        for line in capsys.readouterr().out.splitlines()
        if len(cells := line.strip("│").split("│")) > 3
    }
    assert rows["KL divergence"] == ["0.2000"] * 3
    assert "reward margin" not in rows
    assert "likelihood loss" not in rows


def test_answers_of_first_and_last_evaluation_are_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "120")
    work = a_run(tmp_path, 10)
    with work.samples.open("w") as file:
        for step in (0, 5, 8, 10):
            for number in range(4):
                line = {
                    "step": step,
                    "prompt": f"ask {number}",
                    "policy": f"say [{number}] at {step}\x1b[31m",
                    "chosen": "right",
                }
                file.write(json.dumps(line) + "\n")
    report(work)
    printed = capsys.readouterr().out

    [row] = [line for line in printed.splitlines() if "say [1] at 0" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == [f"say [1] at {step}�[31m" for step in (0, 5, 10)]
    assert "Prompt: ask 2" in printed
    assert "ask 3" not in printed
    assert "In the data: right" in printed
    assert "\x1b" not in printed


def test_without_matplotlib_there_is_still_the_table(tmp_path: Path):
    a_run(tmp_path, 3)
    body = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path; from dpo_trainer.commands.report import report; from dpo_trainer.runtime.workdir import WorkDir\n"
        f"report(WorkDir(Path({str(tmp_path)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=True)

    assert "reward margin" in done.stdout
    assert "reward margin" in (tmp_path / "report" / "report.txt").read_text()
    assert done.stderr.strip() == "No picture: matplotlib is not installed (pip install matplotlib)."


def test_a_run_without_steps_has_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "job.json").write_text("{}")
    report(WorkDir(tmp_path))

    assert "no steps yet" in capsys.readouterr().err


def test_a_folder_that_is_not_of_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "notes").write_text("mine")

    assert phases.run("report", tmp_path / "job.json", tmp_path) == ExitCode.INPUT_NOT_FOUND
    assert f"report: {tmp_path}: expected the work folder of a run" in capsys.readouterr().err
