"""FlatLoss: nothing is learned. The gradient, the size of the updates and the data show the cause."""

from dpo_operator.api.diagnosis import Code, Finding
from dpo_operator.api.model import AdapterType
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import RunRecord, average, drift_of, number
from dpo_trainer.diagnosis.saying import finding, other_rate, percent, round_, short

# Gradients below this, and updates below this share of the weights, are none.
_NO_GRADIENT, _NO_UPDATE = 1e-8, 1e-9
# Movement of the weights over a whole run, as a share of their norm, that is enough to learn something.
_MOVES = 0.02
# A drift of the answers, nats a token, that a run should reach.
_AIM = 0.05
_USUAL_EPSILON, _LARGE_EPSILON = 1e-8, 1e-6
_FEWEST = 4


def check(record: RunRecord, limits: Limits) -> Finding | None:
    """State that loss and policy stay where they started, once the schedule had time to move them."""
    train = record.train
    size = max(1, len(train) // 5)
    if len(train) < _FEWEST or record.done < limits["flatShare"] or record.step < record.warmup_steps + size:
        return None
    now, start = average(train[-size:]), record.start_loss
    loss, drift = number(now, "loss"), drift_of(now)
    gradient = number(now, "grad_norm")
    # The largest one: at the end of a schedule every update is small.
    update = max((u for line in train if (u := number(line, "update_ratio")) is not None), default=None)
    if loss is None or start is None:
        return None
    if record.spec.method.needs_reference:
        still = record.starts_level or record.spec.model.reference is not None
        if not still or drift is None or not _still(record, loss, start, drift, limits):
            return None
    else:
        tiny = update is not None and update * record.total_steps < _MOVES / 20
        none = gradient is not None and gradient < _NO_GRADIENT
        if not (tiny or none) or not _level(record, loss, start, limits):
            return None
    setting, why, suggestion = _cause(record, drift, gradient, update)
    moved = "" if drift is None else f", and the policy moved {short(round_(drift, 1))} nats a token"
    return finding(
        Code.FLAT_LOSS, "Unhealthy", record.step,
        f"After {percent(record.done)} of the steps the loss is {loss:.4f}, as at the start ({start:.4f}){moved}: {why}.",
        [("loss", loss, start), ("logratio_abs_per_token", drift, limits["flatLogRatio"]), ("grad_norm", gradient, _NO_GRADIENT),
         ("update_ratio", update, None), ("learning_rate", record.spec.learning_rate, None)],
        setting, suggestion,
    )  # fmt: skip


def _still(record: RunRecord, loss: float, start: float, drift: float, limits: Limits) -> bool:
    if record.spec.model.reference is not None:
        # The drift is that to another model: only the loss can tell, and only when it does not move at all.
        return abs(loss - start) < 0.1 * limits["flatLoss"] * abs(start)
    return abs(loss - start) < limits["flatLoss"] * abs(start) and drift < limits["flatLogRatio"]


def _level(record: RunRecord, loss: float, start: float, limits: Limits) -> bool:
    """Whether the loss stays, without a reference: on the same held-out pairs where there are two evaluations, which other pairs can't hide."""
    held = [value for line in record.evals if (value := number(line, "loss")) is not None]
    if len(held) > 1:
        start, loss = held[0], held[-1]
    return abs(loss - start) < limits["flatLoss"] * abs(start)


def _cause(
    record: RunRecord, drift: float | None, gradient: float | None, update: float | None
) -> tuple[str, str, str]:
    """Field, cause and advice."""
    spec, training = record.spec, record.spec.training
    adapted = spec.adapter.type is not AdapterType.NONE
    if gradient is not None and gradient < _NO_GRADIENT:
        if adapted:
            modules = ", ".join(spec.adapter.target_modules)[:60]
            return (
                "adapter.targetModules",
                f"the gradient is {gradient:.1g}, so that no adapter is in the loss",
                f"Try adapter.targetModules [all-linear] instead of [{modules}].",
            )
        return (
            "data.train",
            f"the gradient is {gradient:.1g}, so that chosen and rejected answers are the same to the loss",
            "Look at the pairs with `dpo preview`.",
        )
    if training.adam_epsilon > _LARGE_EPSILON:
        return (
            "training.adamEpsilon",
            "AdamW's epsilon outweighs the gradients and makes its steps tiny",
            f"Try training.adamEpsilon {short(_USUAL_EPSILON)} instead of {short(training.adam_epsilon)}.",
        )
    if gradient is not None and 0 < training.max_grad_norm < 1e-3 * gradient:
        return (
            "training.maxGradNorm",
            f"gradients of norm {gradient:.2g} are clipped to {short(training.max_grad_norm)}",
            f"Try training.maxGradNorm 1 instead of {short(training.max_grad_norm)}.",
        )
    if adapted and spec.adapter.alpha < 0.1 * spec.adapter.rank:
        return (
            "adapter.alpha",
            f"the adapter's output counts {spec.adapter.alpha:g}/{spec.adapter.rank} times",
            f"Try adapter.alpha {2 * spec.adapter.rank} instead of {spec.adapter.alpha:g}.",
        )
    if update is not None and update * max(1, record.total_steps) >= _MOVES:
        return (
            "data.filters",
            "the weights move, so that the chosen and rejected answers must be too alike to tell apart",
            "Look at the pairs with `dpo preview`, and leave out near-copies: set data.filters.minScoreGap, or minConfidence.",
        )
    factor = 100.0
    if drift:
        factor = min(1000.0, max(10.0, _AIM / drift * max(record.done, 0.1)))
    if update is not None and update < _NO_UPDATE:
        factor = 1000.0
    rate = other_rate(spec, factor)
    return (
        "training.learningRate",
        f"the rate of {short(spec.learning_rate)} is too small",
        f"{rate[0].upper()}{rate[1:]}.",
    )
