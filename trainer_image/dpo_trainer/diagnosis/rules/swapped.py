"""SwappedLabels: the held-out margin mirrors the training margin."""

from dataclasses import dataclass

from dpo_operator.api.diagnosis import Code, Finding
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import RunRecord, average, error_of, mean, number
from dpo_trainer.diagnosis.saying import finding

# Training pairs around an evaluation whose margin is compared with it, and fewest evaluation pairs whose margin says something.
_PAIRS, _HELD = 64, 16


@dataclass(frozen=True)
class _Look:
    """Margins at an evaluation, as they changed since the start, with their standard errors."""

    train: float
    train_error: float
    held: float
    held_error: float
    rise: float
    loss: float


def check(record: RunRecord, limits: Limits) -> Finding | None:
    """State that the training pairs prefer what the evaluation pairs reject, after two evaluations, or a very clear one."""
    looks = [_look(record, index) for index in range(max(0, len(record.evals) - 2), len(record.evals))]
    if not looks or looks[-1] is None or not _mirrors(looks[-1], limits):
        return None
    last = looks[-1]
    before = looks[0] is not None and len(looks) == 2 and _mirrors(looks[0], limits)
    clear = last.held <= -2 * limits["swappedMirror"] * last.train
    if not before and not clear:
        return None
    return finding(
        Code.SWAPPED_LABELS, "Unhealthy", record.step,
        f"The margin grows to {last.train:.2g} on the training pairs and falls to {last.held:.2g} on the evaluation pairs, whose loss is "
        f"{last.loss:.3g}: one of the two sets has chosen and rejected swapped, or they prefer opposite things.",
        [("rewards/margins", last.train, None), ("eval_rewards/margins", last.held, -limits["swappedMirror"] * last.train),
         ("eval_loss", last.loss, None)],
        "data.train.columns", f"{_columns(record)} Look at a few pairs of both sets with `dpo preview`.",
    )  # fmt: skip


def _columns(record: RunRecord) -> str:
    columns = record.spec.data.train.columns
    return f"Try data.train.columns {{chosen: {columns.rejected}, rejected: {columns.chosen}}}."


def _mirrors(look: _Look, limits: Limits) -> bool:
    errors = limits["swappedErrors"]
    clear = look.train >= errors * look.train_error and look.train > 0
    return (
        clear
        and look.held <= -errors * look.held_error
        and look.held <= -limits["swappedMirror"] * look.train
        and look.rise >= limits["swappedLoss"]
    )


def _look(record: RunRecord, index: int) -> _Look | None:
    line = record.evals[index]
    step = line["step"]
    near = [row for row in record.train if row["step"] <= step]
    taken = RunRecord(record.spec, tuple(near)).latest(_PAIRS)
    margin = mean(taken, "rewards/margins")
    held, loss, start = number(line, "rewards/margins"), number(line, "loss"), record.start_loss
    held_error, pairs = error_of(line, "rewards/margins"), number(line, "pairs") or 0
    if margin is None or held is None or loss is None or start is None or held_error is None or pairs < _HELD:
        return None
    begin = held_begin = 0.0
    if not record.starts_level:
        # Without a reference margins start anywhere: what counts is how they changed since the first evaluation.
        first = record.evals[0]
        if index == 0:
            return None
        early = average([row for row in record.train if row["step"] <= max(1, first["step"] // 4)] or record.train[:1])
        begin, held_begin = number(early, "rewards/margins") or 0.0, number(first, "rewards/margins") or 0.0
        start = number(first, "loss") or start
    return _Look(
        margin.value - begin,
        margin.error,
        held - held_begin,
        held_error,
        (loss - start) / max(1.0, abs(start)),
        loss,
    )
