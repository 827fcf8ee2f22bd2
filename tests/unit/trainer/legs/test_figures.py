"""What a leg reports, from the files of its training, and what is kept of a sweep."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.diagnosis import Finding, Severity
from dpo_operator.api.sweep.grid import Sweep, leg_spec
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.diagnosis.history import Diagnosis
from dpo_trainer.legs import record
from dpo_trainer.legs.figures import report_of
from dpo_trainer.runtime.workdir import WorkDir
from tests.unit.planning.build import a_job
from tests.unit.trainer.checkpoints import a_checkpoint, loop_state

pytestmark = pytest.mark.unit


@pytest.fixture
def leg(tmp_path: Path) -> WorkDir:
    """The second leg of a sweep, after four steps of which two were evaluated."""
    leg = WorkDir(tmp_path).of_sweep(2)
    lines = [
        {"step": 1, "loss": 0.69},
        evaluated(2, 0.7, kl=1.5),
        {"step": 4, "loss": 0.5},
        evaluated(4, 0.6),
    ]
    leg.own.mkdir(parents=True)
    leg.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return leg


def evaluated(step: int, accuracy: float, kl: float | None = None) -> dict[str, Any]:
    figures = {
        "loss": 1 - accuracy,
        "rewards/accuracies": accuracy,
        "rewards/margins": 1 / 3,
        "logratio_abs_per_token": 0.01 * step,
    }
    found = {f"eval_{key}": value for key, value in figures.items()}
    return {"step": step, **found, **({} if kl is None else {"eval_samples/t1/kl": kl})}


def spec(**fields: Any) -> DPOJobSpec:
    data = {"train": {"source": "t"}, "evalFraction": 0.1}
    return leg_spec(a_job(data=data, sweep={"beta": [0.1, 0.3]}, **fields).spec, 2)


def save(leg: WorkDir) -> None:
    """A checkpoint of the last step, whose run knows both evaluations: the first has the least loss."""
    folder = a_checkpoint(leg.checkpoints, 4)
    manifest = json.loads((folder / "manifest.json").read_text())
    state = loop_state(4, evaluations=((2, 0.3), (4, 0.4)), total_steps=4, finished="Trained.")
    manifest["state"] = json.loads(state.model_dump_json())
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_figures_are_those_of_the_checkpoint_that_is_exported(leg: WorkDir) -> None:
    save(leg)
    last = report_of(spec(), leg, "beta 0.3", "Trained", "Trained 4 steps.")
    assert (last.leg, last.steps, last.step, last.accuracy, last.margin, last.drift) == (2, 4, 4, 0.6, 0.333333, 0.04)
    # Samples are taken at some evaluations alone.
    assert last.kl == 1.5
    best = report_of(spec(export={"checkpoint": "best"}), leg, "beta 0.3", "Trained", "Trained 4 steps.")
    assert (best.steps, best.step, best.accuracy, best.loss, best.drift) == (4, 2, 0.7, 0.3, 0.02)


def test_a_leg_that_was_ended_at_once_has_no_figures(tmp_path: Path) -> None:
    leg = WorkDir(tmp_path).of_sweep(1)
    found = report_of(spec(), leg, "beta 0.1", "Unhealthy", "Step 1: NaN. " * 90)
    assert (found.steps, found.step, found.accuracy, found.unhealthy) == (0, None, None, True)
    assert len(found.message) <= 300


@pytest.mark.parametrize(("severity", "unhealthy"), [("Warning", False), ("Unhealthy", True)])
def test_findings_about_learning_are_listed(leg: WorkDir, severity: Severity, unhealthy: bool) -> None:
    codes = [("Gibberish", severity), ("NoMetrics", "Unhealthy"), ("NonFinite", "Info")]
    findings = tuple(Finding(code=code, severity=how, cause="So.") for code, how in codes)  # type: ignore[arg-type]
    Diagnosis(findings=findings).write(leg)
    found = report_of(spec(), leg, "beta 0.3", "Trained", "")
    assert (found.findings, found.unhealthy) == (("Gibberish", "NonFinite"), unhealthy)


def test_a_damaged_report_counts_as_none(leg: WorkDir) -> None:
    assert record.read_report(leg) is None
    record.write_report(leg, report_of(spec(), leg, "beta 0.3", "Trained", ""))
    assert [report.leg for report in record.read_reports(leg)] == [2]
    leg.leg_report.write_text("{")
    assert record.read_reports(leg) == []


def test_the_choice_is_kept_with_the_table(leg: WorkDir) -> None:
    record.write_report(leg, report_of(spec(), leg, "beta 0.3", "Trained", ""))
    assert record.chosen(leg) is None
    record.write_choice(Sweep(beta=[0.1, 0.3]), leg)
    kept = json.loads(leg.chosen_leg.read_text())
    assert (kept["leg"], kept["settings"], kept["select"]) == (2, {"beta": 0.3}, "eval_reward_accuracy")
    assert [each["accuracy"] for each in kept["legs"]] == [0.6]
    assert record.chosen(leg) == 2


@pytest.mark.parametrize("leg", ["", "legs/0002", "rounds/0010"])
def test_a_checkpoint_tells_its_leg(leg: str) -> None:
    root = Path("/runs/job")
    assert WorkDir.of_checkpoint(root / leg / "checkpoints" / "step-00000050") == WorkDir(root, leg)


def test_legs_share_what_is_prepared_and_keep_their_training_apart(tmp_path: Path) -> None:
    work = WorkDir(tmp_path)
    leg = work.of_sweep(3)
    assert (leg.train_data, leg.eval_data, leg.model, leg.reference) == (
        work.train_data, work.eval_data, work.model, work.reference
    )  # fmt: skip
    assert leg.checkpoints == tmp_path / "legs" / "0003" / "checkpoints"
    assert (leg.number, leg.sweep_number, work.sweep_number, work.round(2).sweep_number) == (0, 3, 0, 0)
