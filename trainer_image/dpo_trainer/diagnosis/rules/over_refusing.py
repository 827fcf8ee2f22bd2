"""OverRefusing: the policy refuses more than the reference, and more than the data ask for; also in words of its own."""

import math
from collections import Counter

from dpo_operator.api.diagnosis import Code, Finding, Severity
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import RunRecord, number
from dpo_trainer.diagnosis.rules.generations import Generations, generations
from dpo_trainer.diagnosis.saying import finding, percent

_WORDS, _BEGINNING = 4, 2
_HALF = 0.5
_SUGGESTION = "Add pairs whose chosen answer helps, with harmless prompts like these (data.mixture), or lower the weight of the pairs that refuse."


def check(record: RunRecord, limits: Limits) -> Finding | None:
    """State that samples refuse: by usual words, or by one opening that neither reference nor chosen answers have."""
    found = generations(record, limits)
    if found is None:
        return None
    return _by_words(record, found, limits) or _by_opening(record, found, limits)


def _by_words(record: RunRecord, found: Generations, limits: Limits) -> Finding | None:
    now, before = (_both(read("greedy/refusals"), read("t1/refusals")) for read in (found.value, found.reference))
    if now is None or before is None or now < limits["refusingShare"]:
        return None
    # Greedy and at temperature 1: two answers to a prompt.
    count = 2 * found.prompts
    error = math.sqrt(max(now * (1 - now), before * (1 - before), 0.01) / count)
    # Held-out pairs that were taken from the training pairs are counted among those.
    data = record.features("eval") or record.features("train")
    asked = max(before, number(data.get("refusals") or {}, "chosen") or 0.0)
    limit = asked + limits["refusingErrors"] * error
    if now < limit:
        return None
    severity: Severity = "Unhealthy" if now >= _HALF else "Warning"
    return finding(
        Code.OVER_REFUSING, severity, record.step,
        f"The policy refuses {percent(now)} of {found.prompts} held-out prompts; the reference refused {percent(before)}"
        f"{_taught(record)}.",
        [("samples/refusals", now, max(limit, limits["refusingShare"])), ("reference/refusals", before, None)],
        "data.mixture", _SUGGESTION,
    )  # fmt: skip


def _taught(record: RunRecord) -> str:
    shares = record.features("train").get("refusals") or {}
    chosen, rejected = number(shares, "chosen"), number(shares, "rejected")
    return (
        ""
        if chosen is None or rejected is None
        else f", and in the training pairs {percent(chosen)} of the chosen and {percent(rejected)} of the rejected answers refuse"
    )


def _by_opening(record: RunRecord, found: Generations, limits: Limits) -> Finding | None:
    openings = {
        side: [_opening(line.get(side)) for line in record.samples]
        for side in ("policy", "reference", "reference_t1", "chosen")
    }
    said = Counter(filter(None, openings["policy"]))
    compared = any(line.get("reference") is not None for line in record.samples)
    if len(record.samples) < limits["samplePrompts"] or not said or not compared:
        return None
    top, times = said.most_common(1)[0]
    share, usual = (
        times / len(record.samples),
        max(openings[side].count(top) / len(record.samples) for side in ("reference", "reference_t1", "chosen")),
    )
    if share < limits["refusingOpening"] or usual > limits["refusingOpeningData"] or not any(openings["chosen"]):
        return None
    # Another beginning of a sentence that they have, too, is the same kind of answer.
    begun = " ".join(top.split()[:_BEGINNING])
    if sum(
        text.startswith(begun) for side in ("reference", "reference_t1", "chosen") for text in openings[side]
    ) > 2 * limits["refusingOpeningData"] * len(record.samples):
        return None
    return finding(
        Code.OVER_REFUSING, "Warning", record.step,
        f"{percent(share)} of the policy's answers begin “{top[:60]}”, as {percent(usual)} of the chosen and the reference's answers to the same prompts do: "
        "it gives one answer to everything, as a refusal in its own words.",
        [("samples/opening", share, limits["refusingOpening"]), ("data/opening", usual, limits["refusingOpeningData"])],
        "data.mixture", _SUGGESTION,
    )  # fmt: skip


def _both(greedy: float | None, sampled: float | None) -> float | None:
    known = [value for value in (greedy, sampled) if value is not None]
    return sum(known) / len(known) if known else None


def _opening(text: object) -> str:
    words = str(text or "").split()
    return " ".join(words[:_WORDS]) if len(words) >= _WORDS else ""
