"""All rules on one record: which findings stand, and which are only consequences of others."""

import logging
from collections.abc import Callable, Iterable

from dpo_operator.api.diagnosis import CODES, SEVERITIES, Code, Finding, worst_first
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import RunRecord
from dpo_trainer.diagnosis.rules import (
    displacement,
    flat_loss,
    gibberish,
    mismatch,
    noisy_labels,
    not_fine_tuned,
    over_refusing,
    overfitting,
    reference_drift,
    saturated,
    shortcut,
    swapped,
    template,
    verbosity,
    wrong_reference,
)

log = logging.getLogger(__name__)

Rule = Callable[[RunRecord, Limits], Finding | None]

RULES: dict[Code, Rule] = {
    Code.WRONG_REFERENCE: wrong_reference.check,
    Code.NOT_THE_FINE_TUNED_MODEL: not_fine_tuned.check,
    Code.TEMPLATE_OR_BOUNDARY: template.check,
    Code.SWAPPED_LABELS: swapped.check,
    Code.GIBBERISH: gibberish.check,
    Code.FLAT_LOSS: flat_loss.check,
    Code.NOISY_LABELS: noisy_labels.check,
    Code.LIKELIHOOD_DISPLACEMENT: displacement.check,
    Code.VERBOSITY: verbosity.check,
    Code.SHORTCUT: shortcut.check,
    Code.OVER_REFUSING: over_refusing.check,
    Code.OVERFITTING: overfitting.check,
    Code.SATURATED: saturated.check,
    Code.REFERENCE_DRIFT: reference_drift.check,
    Code.DISTRIBUTION_MISMATCH: mismatch.check,
}

FIRST_STEP = frozenset({"FirstStepLoss", "FirstStepMargin"})
_GENERATIONS = frozenset({Code.GIBBERISH, Code.VERBOSITY, Code.OVER_REFUSING, Code.REFERENCE_DRIFT})

# What each finding explains. An explained one is silent, unless it is worse than what explains it. Three exceptions are in
# the rules: Gibberish and Verbosity leave samples that repeat a mark to Shortcut where that mark is what chosen answers share; Gibberish leaves broken samples to LikelihoodDisplacement where the answers are nearly alike, and endless ones to
# Verbosity where the data teach length and the text is sound.
EXPLAINS: dict[Code, frozenset[str]] = {
    Code.WRONG_REFERENCE: FIRST_STEP
    | {
        Code.SWAPPED_LABELS, Code.FLAT_LOSS, Code.NOISY_LABELS, Code.LIKELIHOOD_DISPLACEMENT, Code.OVERFITTING,
        Code.SATURATED, Code.REFERENCE_DRIFT, Code.GIBBERISH,
    },
    Code.NOT_THE_FINE_TUNED_MODEL: _GENERATIONS
    | {Code.TEMPLATE_OR_BOUNDARY, Code.DISTRIBUTION_MISMATCH, Code.LIKELIHOOD_DISPLACEMENT, Code.SATURATED, Code.OVERFITTING},
    Code.TEMPLATE_OR_BOUNDARY: _GENERATIONS
    | {Code.DISTRIBUTION_MISMATCH, Code.LIKELIHOOD_DISPLACEMENT, Code.SATURATED, Code.SHORTCUT},
    Code.SWAPPED_LABELS: _GENERATIONS
    | {Code.NOISY_LABELS, Code.LIKELIHOOD_DISPLACEMENT, Code.OVERFITTING, Code.SATURATED, Code.SHORTCUT},
    Code.GIBBERISH: frozenset({
        Code.LIKELIHOOD_DISPLACEMENT, Code.VERBOSITY, Code.SHORTCUT, Code.OVER_REFUSING, Code.OVERFITTING, Code.SATURATED,
        Code.REFERENCE_DRIFT, Code.NOISY_LABELS,
    }),
    Code.FLAT_LOSS: frozenset({Code.NOISY_LABELS, Code.SHORTCUT, Code.SATURATED}),
    Code.NOISY_LABELS: frozenset({Code.OVERFITTING, Code.SHORTCUT, Code.SATURATED}),
    Code.LIKELIHOOD_DISPLACEMENT: frozenset({
        Code.VERBOSITY, Code.SHORTCUT, Code.OVER_REFUSING, Code.OVERFITTING, Code.SATURATED, Code.REFERENCE_DRIFT,
    }),
    Code.VERBOSITY: frozenset({Code.SHORTCUT, Code.SATURATED, Code.REFERENCE_DRIFT, Code.OVER_REFUSING}),
    Code.OVER_REFUSING: frozenset({Code.SHORTCUT, Code.SATURATED, Code.REFERENCE_DRIFT}),
    Code.OVERFITTING: frozenset({Code.SATURATED, Code.REFERENCE_DRIFT}),
}  # fmt: skip


def diagnose(record: RunRecord, warnings: Iterable[Finding] = ()) -> list[Finding]:
    """Findings that hold now, worst first, without those that others explain.

    warnings: of prepare and the trainer, which others may explain, too. A rule that fails is logged and says nothing.
    """
    limits = Limits(record.spec.diagnosis.thresholds)
    found = []
    for code, rule in RULES.items():
        try:
            stated = rule(record, limits)
        except Exception as error:
            log.warning("the rule %s failed: %s: %s", code.value, type(error).__name__, error)
            continue
        if stated is not None:
            found.append(stated)
    return without_explained([*found, *warnings])


def without_explained(findings: Iterable[Finding]) -> list[Finding]:
    """Findings that no other explains, worst first. What is explained explains nothing itself."""
    order = {code.value: number for number, code in enumerate(EXPLAINS)}
    ranked = worst_first(list(findings))
    standing: list[Finding] = []
    silenced: list[Finding] = []
    for finding in sorted(ranked, key=lambda f: order.get(f.code, len(order))):
        if any(finding.code in _explained_by(one) and not _worse(finding, one) for one in standing):
            silenced.append(finding)
        else:
            standing.append(finding)
    return [finding for finding in ranked if finding not in silenced]


def _explained_by(finding: Finding) -> frozenset[str]:
    return EXPLAINS.get(Code(finding.code), frozenset()) if finding.code in CODES else frozenset()


def _worse(finding: Finding, than: Finding) -> bool:
    return SEVERITIES.index(finding.severity) < SEVERITIES.index(than.severity)
