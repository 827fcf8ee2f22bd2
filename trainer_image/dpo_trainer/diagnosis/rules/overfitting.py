"""Overfitting: the held-out loss rises from its least while the training loss falls."""

from dpo_operator.api.diagnosis import Code, Finding
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import RunRecord, average, error_of, number
from dpo_trainer.diagnosis.saying import finding, other_rate, round_, short

_EVALUATIONS = 2


def check(record: RunRecord, limits: Limits) -> Finding | None:
    """State that further steps make held-out pairs worse, at two evaluations in a row."""
    losses = [(line, loss) for line in record.evals if (loss := number(line, "loss")) is not None]
    start = record.start_loss
    if len(losses) <= _EVALUATIONS or start is None:
        return None
    best, least = min(losses[:-_EVALUATIONS], key=lambda item: item[1])
    newest = losses[-_EVALUATIONS:]
    limit = least + max(
        limits["overfittingRise"] * abs(start), 2 * max(error_of(line, "loss") or 0.0 for line, _ in newest)
    )
    if any(loss < limit for _, loss in newest):
        return None
    then = [line for line in record.train if line["step"] <= best["step"]]
    size = max(1, len(then) // 3)
    before, now = (number(average(lines), "loss") for lines in (then[-size:] or record.train[:1], record.train[-size:]))
    if before is None or now is None or now >= before:
        return None
    epochs = record.spec.training.epochs
    fewer = number(best, "epoch") or 0.0
    shorter = (
        f"training.epochs {short(round_(fewer, 2))} instead of {short(epochs)}"
        if 0 < fewer < epochs
        else other_rate(record.spec, 0.5).removeprefix("try ")
    )
    return finding(
        Code.OVERFITTING, "Warning", record.step,
        f"Since step {best['step']} the held-out loss rose from {least:.3g} to {newest[-1][1]:.3g} while the training loss fell from {before:.3g} to {now:.3g}.",
        [("eval_loss", newest[-1][1], limit), ("loss", now, before)],
        "training.epochs", f"Try {shorter}, or set earlyStopping, and export the best checkpoint (export.checkpoint best).",
    )  # fmt: skip
