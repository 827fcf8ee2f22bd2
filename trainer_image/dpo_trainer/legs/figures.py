"""The figures of a leg, from the files that its training left."""

from typing import Any

from dpo_operator.api.diagnosis import CODES
from dpo_operator.api.sweep.report import MAX_LEG_FINDINGS, MAX_LEG_MESSAGE, LegReport, Outcome
from dpo_operator.api.text import shown
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.checkpoint.loop_state import LoopState
from dpo_trainer.checkpoint.manifest import newest_state
from dpo_trainer.diagnosis.history import Diagnosis
from dpo_trainer.diagnosis.record import drift_of, number
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.metrics_file import Line, read_metrics, training_and_evaluations

_KEYS = {"loss": "loss", "accuracy": "rewards/accuracies", "margin": "rewards/margins"}
_KL = "eval_samples/t1/kl"
# Findings that tell legs from one another; all others are about the data or the machine.
_LEARNING = CODES | {"NonFinite"}
_DIGITS = 6


def report_of(spec: DPOJobSpec, work: WorkDir, settings: str, outcome: Outcome, message: str) -> LegReport:
    """What came of a leg that has ended. spec, work: of the leg. settings: its values, in words. message: how it ended. Raises OSError."""
    train, evaluations = training_and_evaluations(read_metrics(work.metrics))
    state = newest_state(work.checkpoints)
    steps = max(state.step if state else 0, train[-1]["step"] if train else 0)
    step = _exported(spec, state)
    # Of a leg that was ended the newest evaluation says most; it would export nothing.
    wanted = step if step is not None and outcome == "Trained" else steps
    seen = [line for line in evaluations if line["step"] <= wanted]
    line: Line = {key.removeprefix("eval_"): value for key, value in seen[-1].items()} if seen else {}
    kl = next((value for each in reversed(seen) if (value := number(each, _KL)) is not None), None)
    holding = [finding for finding in Diagnosis.read(work).findings if finding.code in _LEARNING]
    figures: dict[str, Any] = {name: _rounded(number(line, key)) for name, key in _KEYS.items()}
    return LegReport(
        leg=work.sweep_number,
        settings=settings,
        outcome=outcome,
        message=shown(message, MAX_LEG_MESSAGE),
        steps=steps,
        step=step,
        **figures,
        drift=_rounded(drift_of(line)),
        kl=_rounded(kl),
        findings=tuple(finding.code for finding in holding[:MAX_LEG_FINDINGS]),
        unhealthy=outcome == "Unhealthy" or any(finding.severity == "Unhealthy" for finding in holding),
    )


def _exported(spec: DPOJobSpec, state: LoopState | None) -> int | None:
    """Step of the checkpoint that an export takes, as export.phase does: of equal evaluations the later one. None without a checkpoint."""
    if state is None:
        return None
    evaluated = [(cost, -step) for step, cost in state.evaluations if cost is not None]
    return -min(evaluated)[1] if spec.exports_best and evaluated else state.step


def _rounded(value: float | None) -> float | None:
    """To the digits that a status keeps, so that operator and trainer compare the same numbers."""
    return None if value is None else float(f"{value:.{_DIGITS}g}")
