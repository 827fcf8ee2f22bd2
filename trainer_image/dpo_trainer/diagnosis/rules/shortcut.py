"""Shortcut: one feature of the answers tells chosen from rejected, and the model need not learn more."""

from collections.abc import Mapping
from typing import Any

from dpo_operator.api.diagnosis import Code, Finding, Severity
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import RunRecord, number
from dpo_trainer.diagnosis.rules.generations import generations, surprising
from dpo_trainer.diagnosis.saying import finding, percent

# Marks of style. A word or a length may be the preference itself; length that does harm is Verbosity.
_STYLE = ("punctuation", "digits", "list marks", "refusal", "language")
_FEWEST = 100


def check(record: RunRecord, limits: Limits) -> Finding | None:
    """Name the feature that explains most pairs, once the model has learned to tell them apart."""
    best = best_feature(record)
    if best is None or not record.points:
        return None
    accuracy, held = number(best, "accuracy") or 0.0, number(record.points[-1], "rewards/accuracies")
    if accuracy < limits["shortcutExplains"] or held is None or held < limits["shortcutAccuracy"]:
        return None
    kind, detail = str(best["feature"]), str(best["detail"])
    severity: Severity = "Warning" if kind in _STYLE else "Info"
    if breaks_samples(record, limits):
        severity = "Unhealthy"
    return finding(
        Code.SHORTCUT, severity, record.step,
        f"{detail} alone ({kind}) tells chosen from rejected in {percent(accuracy)} of the training pairs; the model is right in {percent(held)}, and may have "
        "learned nothing else.",
        [(f"{kind} rule", accuracy, limits["shortcutExplains"]), ("rewards/accuracies", held, limits["shortcutAccuracy"])],
        "data.train", "Add pairs in which the better answer lacks this mark, or take the mark out of both answers.",
    )  # fmt: skip


def breaks_samples(record: RunRecord, limits: Limits) -> bool:
    """Whether a mark of style is all that chosen answers share, and the policy's samples repeat themselves or do not end, in words that it is sure of."""
    best, found = best_feature(record), generations(record, limits)
    if best is None or found is None or best["feature"] not in _STYLE or surprising(found, limits):
        return False
    repeats = (found.change("greedy/repeated_4grams") or 0.0) >= limits["gibberishRepeated"]
    endless = -(found.change("greedy/ended") or 0.0) >= limits["verbosityEnded"]
    return (number(best, "accuracy") or 0.0) >= limits["shortcutExplains"] and (repeats or endless)


def best_feature(record: RunRecord) -> Mapping[str, Any] | None:
    """The feature of the training answers that explains most, marks of style first among equals; None with few pairs."""
    features = record.features("train")
    rules = [
        rule for rule in features.get("rules", ()) if isinstance(rule, Mapping) and number(rule, "accuracy") is not None
    ]
    if not rules or (number(features, "pairs") or 0) < _FEWEST:
        return None
    return max(rules, key=lambda rule: (round(number(rule, "accuracy") or 0.0, 3), rule.get("feature") in _STYLE))
