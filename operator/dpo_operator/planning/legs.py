"""Legs of a sweep: what their trainings report, what is kept of each, and which one is exported."""

from dpo_operator.api import conditions as c
from dpo_operator.api.reports import Termination
from dpo_operator.api.status import DPOJobStatus, FinalMetrics
from dpo_operator.api.statusparts.legs import LegStatus
from dpo_operator.api.sweep.report import best, none_trained, why_best
from dpo_operator.api.text import quoted
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.planning.actions import Event
from dpo_operator.planning.progress import is_current
from dpo_operator.planning.progress import number as number_text
from dpo_operator.planning.transitions import changed


def is_reported(status: DPOJobStatus, termination: Termination | None) -> bool:
    """Whether the training of the current leg said what came of it."""
    leg = termination.leg if termination is not None and is_current(termination, status) else None
    return leg is not None and leg.leg == status.leg


def with_report(spec: DPOJobSpec, status: DPOJobStatus, termination: Termination | None) -> DPOJobStatus:
    """The status with the figures of the current leg, and the checkpoints that an export of it may use."""
    if spec.sweep is None or status.phase != "train" or termination is None or not is_reported(status, termination):
        return status
    assert termination.leg is not None
    own = [record for record in status.recorded_checkpoints if record.age not in of_earlier(status)]
    leg = LegStatus.of(termination.leg, spec.sweep.label(status.leg), own)
    others = [each for each in status.legs if each.leg != leg.leg]
    return changed(status, legs=sorted([*others, leg], key=lambda each: each.leg))


def of_earlier(status: DPOJobStatus) -> set[tuple[int, int]]:
    """Attempt and step of checkpoints of the legs before the current one, which can't use them; empty without a leg."""
    return {record.age for leg in status.legs if leg.leg < status.leg for record in leg.checkpoints}


def with_choice(spec: DPOJobSpec, status: DPOJobStatus) -> DPOJobStatus | None:
    """The status with the leg that is exported; None when no leg may be."""
    assert spec.sweep is not None
    found = best(spec.sweep.select, [leg.report for leg in status.legs])
    if found is None:
        return None
    return changed(
        status,
        legs=[leg.model_copy(update={"chosen": leg.leg == found.leg}) for leg in status.legs],
        # Those of the newest training are of the last leg.
        final_metrics=FinalMetrics(
            step=found.steps,
            eval_loss=number_text(found.loss),
            eval_reward_margin=number_text(found.margin),
            eval_reward_accuracy=number_text(found.accuracy),
            ending=found.message[:512],
        ),
    )


def chosen(status: DPOJobStatus) -> LegStatus | None:
    """The leg that is exported; None before it is known, and without a sweep."""
    return next((leg for leg in status.legs if leg.chosen), None)


def number(status: DPOJobStatus) -> int:
    """Of the leg that the pods of the current phase work on: the one that is trained or exported; 0 for none."""
    exported = chosen(status) if status.phase == "export" else None
    return exported.leg if exported is not None else status.leg


def why_none(status: DPOJobStatus) -> str:
    """Why no leg is exported, as sentences."""
    return none_trained([leg.report for leg in status.legs])


def why_chosen(spec: DPOJobSpec, status: DPOJobStatus) -> str:
    """Which leg is exported, as a sentence; empty without a sweep."""
    leg = chosen(status)
    if leg is None or spec.sweep is None:
        return ""
    return (
        f"Leg {leg.leg} of {len(status.legs)} is exported, {why_best(spec.sweep.select, leg.report)}: {leg.settings}."
    )


def events(status: DPOJobStatus) -> tuple[Event, ...]:
    """What the leg that has just ended has brought."""
    leg = next((each for each in status.legs if each.leg == status.leg), None)
    if leg is None:
        return ()
    if leg.outcome == "Unhealthy":
        said = (
            f"Leg {leg.leg} ({leg.settings}) was ended; the sweep continues. The trainer reports: {quoted(leg.message)}"
        )
        return (Event("Warning", c.LEG_UNHEALTHY, said),)
    figures = "".join(
        f", {name} {value}"
        for name, value in (("accuracy", leg.accuracy), ("loss", leg.loss), ("drift", leg.drift))
        if value
    )
    return (Event("Normal", "LegTrained", f"Leg {leg.leg} ({leg.settings}) is trained: {leg.steps} steps{figures}."),)
