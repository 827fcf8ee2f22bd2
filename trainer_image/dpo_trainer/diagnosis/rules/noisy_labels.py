"""NoisyLabels: the policy moves, and new pairs are won as often as lost; by source where several are mixed."""

import math
from collections.abc import Iterator

from dpo_operator.api.diagnosis import Code, Finding, Severity
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import Line, Mean, RunRecord, average, deviation, mean, number
from dpo_trainer.diagnosis.saying import finding, percent

# Newest unseen pairs that are looked at, and how many make it a Warning: hard data look alike for a while.
_PAIRS, _SURE = 500, 400
# Margin as a share of its deviation up to which it is a Warning.
_NONE = 0.1
_FEWEST_OF_SOURCE = 100
# Deviation of a source's margins as a share of the others' margin from which the model tells its answers apart.
_TELLS_APART = 0.5


def check(record: RunRecord, limits: Limits) -> Finding | None:
    """State that labels contradict each other. Hard data look alike, so that it is an Info until the evidence is large."""
    selection = record.spec.training.selection
    if selection is not None and selection.has_pass:
        # The policy chose these pairs by whether it wins them. The ranking has the share that it does not, of all pairs.
        return None
    lines = tuple(line for line in record.latest(_PAIRS, epochs=1.0) if line["step"] > record.warmup_steps)
    if not lines:
        return None
    drift = number(average(lines[-max(1, len(lines) // 4) :]), "logratio_abs_per_token")
    gradient = number(lines[-1], "grad_norm")
    if drift is None or drift < limits["noisyLogRatio"] or not gradient:
        return None
    return _of_source(record, lines, limits) or _of_all(record, lines, drift, limits)


def _of_all(record: RunRecord, lines: tuple[Line, ...], drift: float, limits: Limits) -> Finding | None:
    accuracy, margin, spread = mean(lines, "rewards/accuracies"), mean(lines, "rewards/margins"), deviation(lines)
    if accuracy is None or margin is None or accuracy.pairs < limits["noisyPairs"] or not record.starts_level:
        return None
    if spread is None:
        spread = margin.error * math.sqrt(margin.pairs)
    share = margin.value / spread if spread else 0.0
    if abs(accuracy.value - 0.5) > limits["noisyErrors"] * accuracy.error or abs(share) > limits["noisyMargin"]:
        return None
    severity: Severity = "Warning" if accuracy.pairs >= _SURE and abs(share) <= _NONE else "Info"
    return finding(
        Code.NOISY_LABELS, severity, record.step,
        f"Of the newest {accuracy.pairs} unseen training pairs {percent(accuracy.value)} are won, though the policy moved {drift:.2g} nats a token: "
        "the labels contradict each other, or the pairs are too hard for this model.",
        [("rewards/accuracies", accuracy.value, 0.5 + limits["noisyErrors"] * accuracy.error),
         ("rewards/margins", margin.value, limits["noisyMargin"] * spread), ("logratio_abs_per_token", drift, limits["noisyLogRatio"])],
        *_advice(record),
    )  # fmt: skip


def _of_source(record: RunRecord, lines: tuple[Line, ...], limits: Limits) -> Finding | None:
    """The source of a mixture whose labels tell nothing, or the opposite, while the model learns from the others."""
    names = list(dict.fromkeys(_sources(lines)))
    found = {
        name: accuracy
        for name in names
        if (accuracy := mean(lines, "accuracies", prefix=f"source/{name}/")) is not None
    }
    for name, accuracy in sorted(found.items(), key=lambda item: item[1].value):
        others = [other for key, other in found.items() if key != name]
        if accuracy.pairs < _FEWEST_OF_SOURCE or not others:
            continue
        rest = _together(others)
        learns = rest.value >= 0.5 + limits["noisySource"] * rest.error
        if not learns or accuracy.value > 0.5 + limits["noisyErrors"] * accuracy.error:
            continue
        against = accuracy.value < 0.5 - limits["noisySource"] * accuracy.error
        spread = deviation(lines, f"source/{name}/")
        margins = [
            m for key in found if key != name and (m := mean(lines, "margins", prefix=f"source/{key}/")) is not None
        ]
        others_margin = _together(margins).value if margins else 0.0
        apart = spread is not None and others_margin > 0 and spread >= _TELLS_APART * others_margin
        severity: Severity = "Warning" if against or apart else "Info"
        word = "contradict the others" if against else "tell nothing"
        return finding(
            Code.NOISY_LABELS, severity, record.step,
            f"Of {accuracy.pairs} pairs of {name[-80:]} {percent(accuracy.value)} are won, of the other sources' {percent(rest.value)}: its labels {word}.",
            [(f"source/{name[-40:]}/accuracies", accuracy.value, 0.5 + limits["noisyErrors"] * accuracy.error), ("others/accuracies", rest.value, None)],
            _field_of(record, name), "Look at its columns chosen and rejected with `dpo preview`, or give it weight 0.1, or leave it out.",
        )  # fmt: skip
    return None


def _sources(lines: tuple[Line, ...]) -> Iterator[str]:
    for line in lines:
        for key in line:
            if key.startswith("source/") and key.endswith("/accuracies"):
                yield key.removeprefix("source/").removesuffix("/accuracies")


def _together(found: list[Mean]) -> Mean:
    pairs = sum(each.pairs for each in found)
    return Mean(sum(each.value * each.pairs for each in found) / pairs, 0.5 / math.sqrt(pairs), pairs)


def _field_of(record: RunRecord, name: str) -> str:
    for index, dataset in enumerate(record.spec.data.mixture):
        if name in (dataset.source, f"mixture[{index}]"):
            return f"data.mixture[{index}]"
    return "data.train"


def _advice(record: RunRecord) -> tuple[str, str]:
    confidence = record.spec.data.filters.min_confidence
    if confidence is not None:
        more = min(1.0, round((confidence + 1.0) / 2, 2))
        return (
            "data.filters.minConfidence",
            f"Leave out doubtful pairs: try data.filters.minConfidence {more:g} instead of {confidence:g}.",
        )
    smoothing = record.spec.method.label_smoothing
    return (
        "data.filters.minConfidence",
        f"Have some pairs judged again; leave out doubtful ones (data.filters.minConfidence 0.7, minScoreGap), or try method.labelSmoothing 0.2 instead of {smoothing:g}.",
    )
