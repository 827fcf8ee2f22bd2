"""Verbosity: the policy's answers grow far beyond the reference's and the data's."""

from dpo_operator.api.diagnosis import Code, Finding, Severity
from dpo_operator.api.method import MethodName
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import RunRecord, number
from dpo_trainer.diagnosis.rules import shortcut
from dpo_trainer.diagnosis.rules.generations import fits_the_cap, generations, surprising
from dpo_trainer.diagnosis.saying import finding, percent

# Chosen answers that are longer in this share of the pairs, or as a whole by this ratio, teach length.
_LONGER, _RATIO = 0.65, 1.2


def check(record: RunRecord, limits: Limits) -> Finding | None:
    """State that answers grow: without an end (Unhealthy), beyond the chosen ones (Warning), or to their length (Info)."""
    found = generations(record, limits)
    if found is None or (shortcut.breaks_samples(record, limits) and not teaches_length(record)):
        return None
    growth = [found.ratio(f"{kind}/tokens") for kind in ("greedy", "t1")]
    least = min((value for value in growth if value is not None), default=0.0)
    if None in growth or least < limits["verbosityGrowth"]:
        return None
    tokens, usual = found.value("greedy/tokens") or 0.0, record.usual_tokens("chosen")
    fall = -(found.change("greedy/ended") or 0.0)
    endless = fall >= limits["verbosityEnded"] and fits_the_cap(record)
    severity: Severity = "Info"
    if endless:
        severity = "Unhealthy"
    elif usual is not None and fits_the_cap(record) and tokens >= limits["verbosityBeyondData"] * usual:
        severity = "Warning"
    longer = number(record.split("train"), "chosen_longer")
    why = (
        f"; in {percent(longer)} of the training pairs the chosen answer is the longer one"
        if longer is not None and longer > _LONGER
        else ""
    )
    setting, suggestion = _advice(record)
    ends = f", and only {percent(found.value('greedy/ended') or 0)} of them end" if endless else ""
    return finding(
        Code.VERBOSITY, severity, record.step,
        f"The policy's answers have {tokens:.3g} tokens, {growth[0] or 0:.1f} times the reference's{ends}{why}.",
        [("samples/greedy/tokens", tokens, limits["verbosityGrowth"] * (found.reference("greedy/tokens") or 0)),
         ("samples/t1/tokens", found.value("t1/tokens"), limits["verbosityGrowth"] * (found.reference("t1/tokens") or 0)),
         ("samples/greedy/ended", found.value("greedy/ended"), (found.reference("greedy/ended") or 0) - limits["verbosityEnded"]),
         ("chosen_longer", longer, _LONGER)],
        setting, suggestion,
    )  # fmt: skip


def teaches_length(record: RunRecord) -> bool:
    """Whether the chosen answers are the longer ones."""
    chosen, rejected = (record.usual_tokens(side) or 0.0 for side in ("chosen", "rejected"))
    return bool((record.split("train").get("chosen_longer") or 0) > _LONGER and chosen >= _RATIO * rejected)


def is_only_endless(record: RunRecord, limits: Limits) -> bool:
    """Whether samples go on and on, as the data teach, in words that the policy is as sure of as before."""
    found = generations(record, limits)
    if found is None or surprising(found, limits) or not teaches_length(record):
        return False
    growth = [found.ratio(f"{kind}/tokens") or 0.0 for kind in ("greedy", "t1")]
    return min(growth) >= limits["verbosityGrowth"]


def _advice(record: RunRecord) -> tuple[str, str]:
    if record.spec.method.name in (MethodName.LN_DPO, MethodName.SIMPO, MethodName.LD_DPO):
        ratio = record.spec.data.filters.max_length_ratio
        instead = f" instead of {ratio:g}" if ratio else ""
        return (
            "data.filters.maxLengthRatio",
            f"Leave out pairs whose answers differ much in length: try data.filters.maxLengthRatio 1.5{instead}.",
        )
    return (
        "method.name",
        f"Take the length out of the reward: try method.name ld-dpo instead of {record.spec.method.name.value}, with data.filters.maxLengthRatio 1.5.",
    )
