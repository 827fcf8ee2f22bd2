"""Limits of the rules of diagnosis: one table for the rules, spec.diagnosis.thresholds and the docs.

Where a basis says measured, it is the quickstart's model and data, as `make bench-diagnosis` runs them.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dpo_operator.api.diagnosis import Code


@dataclass(frozen=True)
class Threshold:
    """A limit of a rule. unit: of the value; empty for shares and ratios. basis: why this number."""

    code: Code
    default: float
    unit: str
    meaning: str
    basis: str


# Names are what spec.diagnosis.thresholds takes.
THRESHOLDS: dict[str, Threshold] = {
    "wrongReferenceLogRatio": Threshold(
        Code.WRONG_REFERENCE, 0.02, "nats a token",
        "Mean log-ratio, without its sign, of the first step, where policy and reference are the same model. Ten times as much with adapter dropout; "
        "more, by √(25 ÷ tokens), where the median answer has fewer than 25.",
        "0 by definition; bf16 rounds a whole answer by about 0.1 √tokens",
    ),
    "wrongReferenceLoss": Threshold(
        Code.WRONG_REFERENCE, 0.02, "",
        "Distance of the first loss from the one that the method starts at, as a share of it, or in nats below 1, where the log-ratio is more than rounding.",
        "0 by definition; the same as the start-up check in bf16",
    ),
    "wrongReferenceOther": Threshold(
        Code.WRONG_REFERENCE, 1.0, "nats a token",
        "The same log-ratio where model.reference names another model on purpose.",
        "rounds of training move a policy by some tenths; an unrelated model is several nats away",
    ),
    "notTunedAccuracy": Threshold(
        Code.NOT_THE_FINE_TUNED_MODEL, 0.3, "",
        "Share of the answers' tokens that the model would have written itself, chosen and rejected, together with notTunedSurprise.",
        "measured: 0.03 on text of another kind, 0.40 under a wrong template, 0.72 to 0.86 on its own",
    ),
    "notTunedAccuracyAlone": Threshold(
        Code.NOT_THE_FINE_TUNED_MODEL, 0.1, "",
        "The same share, below which it is enough alone.",
        "a model without training: 0; a base model of stories on chats: 0.23 to 0.33",
    ),
    "notTunedSurprise": Threshold(
        Code.NOT_THE_FINE_TUNED_MODEL, 3.0, "",
        "Surprise (−log p ÷ entropy) at the first tokens and at the rest.",
        "measured: 3.7 to 4.5 on text of another kind; 1.0 is a model's own text",
    ),
    "notTunedEnded": Threshold(
        Code.NOT_THE_FINE_TUNED_MODEL, 0.2, "",
        "Share of the reference's sample answers that end, below which it is noted (Info).",
        "a base model knows no end of an answer",
    ),
    "templateSurprise": Threshold(
        Code.TEMPLATE_OR_BOUNDARY, 2.5, "",
        "Surprise (−log p ÷ entropy) at the first 4 tokens of chosen and rejected answers, median over pairs.",
        "measured: 3.6 to 9.1 under wrong templates and boundaries, 0.9 to 1.8 under right ones",
    ),
    "templateStandsOut": Threshold(
        Code.TEMPLATE_OR_BOUNDARY, 1.25, "",
        "How many times as surprising as the rest the first tokens are, of chosen or of rejected answers.",
        "measured: 1.3 to 4 under wrong templates",
    ),
    "templateAccuracy": Threshold(
        Code.TEMPLATE_OR_BOUNDARY, 0.45, "",
        "Share of the answers' tokens that the model would have written itself, below which, together with templateNll, the template is most likely wrong; else it is a Warning at most.",
        "measured: 0.39 to 0.41 under ChatML. Chat models guess about half of other writers' tokens",
    ),
    "templateNll": Threshold(
        Code.TEMPLATE_OR_BOUNDARY, 3.5, "nats a token",
        "Negative log-likelihood of chosen and rejected answers, together with templateAccuracy.",
        "measured: 4.4 and 4.6 under ChatML, 0.3 under the right template. Other writers' answers cost chat models 1 to 2.5",
    ),
    "surprisePairs": Threshold(
        Code.TEMPLATE_OR_BOUNDARY, 64.0, "pairs",
        "Fewer pairs give no statement about how much they surprise the model, whatever the rule.",
        "a median over fewer is noise",
    ),
    "swappedMirror": Threshold(
        Code.SWAPPED_LABELS, 0.3, "",
        "Held-out margin below zero, as a share of the training margin.",
        "measured: 1.2; half of the labels random: at most 1 of a margin that is itself noise",
    ),
    "swappedErrors": Threshold(
        Code.SWAPPED_LABELS, 5.0, "standard errors",
        "How far above 0 the training margin, and below 0 the held-out one, are. At least 16 evaluation pairs.",
        "chance gives 5 once in a million",
    ),
    "swappedLoss": Threshold(
        Code.SWAPPED_LABELS, 0.05, "",
        "Rise of the held-out loss over its start, as a share of the start, or in nats below 1.",
        "measured: 0.53; half of the labels random: 0.02",
    ),
    "gibberishOwnNll": Threshold(
        Code.GIBBERISH, 2.0, "",
        "NLL a token of the policy's own samples at temperature 1, as a multiple of the reference's.",
        "measured: up to 1.54 in healthy runs, 3 to 10 in broken ones",
    ),
    "gibberishOwnNllRise": Threshold(
        Code.GIBBERISH, 0.3, "nats a token",
        "Least rise of the same, for models that are very sure of themselves.",
        "a share of next to nothing means nothing",
    ),
    "gibberishRepeated": Threshold(
        Code.GIBBERISH, 0.25, "",
        "Rise of the share of repeated 4-grams in greedy samples.",
        "measured: up to 0.01 in healthy runs, 0.46 to 0.85 in broken ones",
    ),
    "gibberishDrift": Threshold(
        Code.GIBBERISH, 2.0, "nats a token",
        "Fall of the chosen answers' log-probs: text that is that unlikely is no longer written. Needs no samples.",
        "measured: 6.7 in a broken run, at most 0.65 in others",
    ),
    "samplePrompts": Threshold(
        Code.GIBBERISH, 16.0, "prompts",
        "Fewer sample answers give no statement about generations, whatever the rule.",
        "a share of fewer is noise",
    ),
    "flatLoss": Threshold(
        Code.FLAT_LOSS, 0.005, "",
        "Distance of the loss from its start, as a share of it; without a reference, of the held-out loss from that of the first evaluation.",
        "measured: 0.001 at a rate 200 times too small, 0.5 in healthy runs",
    ),
    "flatLogRatio": Threshold(
        Code.FLAT_LOSS, 0.001, "nats a token",
        "Mean log-ratio, without its sign: how far the policy moved.",
        "measured: below 0.0005 at a rate 200 times too small",
    ),
    "flatShare": Threshold(
        Code.FLAT_LOSS, 0.2, "",
        "Share of the steps before which nothing is said, nor before the warm-up is over.",
        "a schedule that still warms up has had no time",
    ),
    "noisyErrors": Threshold(
        Code.NOISY_LABELS, 2.0, "standard errors",
        "How near to 0.5 the accuracy of the newest unseen pairs is.",
        "measured: 0.56 on 16 pairs with half of the labels random",
    ),
    "noisyMargin": Threshold(
        Code.NOISY_LABELS, 0.2, "",
        "Margin of these pairs as a share of its standard deviation.",
        "measured: below 0.15 with half of the labels random",
    ),
    "noisyLogRatio": Threshold(
        Code.NOISY_LABELS, 0.005, "nats a token",
        "Mean log-ratio, without its sign, from which the policy counts as moved.",
        "measured: 0.02 with half of the labels random",
    ),
    "noisyPairs": Threshold(
        Code.NOISY_LABELS, 240.0, "pairs",
        "Fewer unseen pairs give no statement.",
        "an accuracy of so many is sure to ±0.06",
    ),
    "noisySource": Threshold(
        Code.NOISY_LABELS, 4.0, "standard errors",
        "How far above 0.5 the other sources' accuracy is where one source is named.",
        "the model learns from the others",
    ),
    "displacementFall": Threshold(
        Code.LIKELIHOOD_DISPLACEMENT, 0.1, "nats a token",
        "Fall of the chosen answers' log-probs.",
        "measured: 0.65 with answers that differ in a word, at most 0.06 in healthy runs",
    ),
    "displacementHeavy": Threshold(
        Code.LIKELIHOOD_DISPLACEMENT, 0.3, "nats a token",
        "The same fall, from which the result is most likely of no use where answers are nearly alike; elsewhere it is a Warning if samples broke, too.",
        "measured: 0.65 with answers that differ in a word",
    ),
    "displacementRatio": Threshold(
        Code.LIKELIHOOD_DISPLACEMENT, 0.15, "",
        "Fall of the chosen as a share of the fall of the rejected.",
        "measured: 0.21 with answers that differ in a word; drift without displacement: 0.01 to 0.03",
    ),
    "displacementAlike": Threshold(
        Code.LIKELIHOOD_DISPLACEMENT, 0.5, "",
        "Share of the pairs whose answers are nearly the same, from which they are named as the cause.",
        "2410.08847: similar answers displace",
    ),
    "verbosityGrowth": Threshold(
        Code.VERBOSITY, 1.5, "",
        "Tokens of the samples, greedy and at temperature 1, as a multiple of the reference's.",
        "measured: 5.1 with chosen answers that are only longer; 0.96 to 1.33 in healthy runs",
    ),
    "verbosityBeyondData": Threshold(
        Code.VERBOSITY, 1.3, "",
        "The same tokens as a multiple of the chosen answers' median: growth up to that is what the data ask for (Info).",
        "answers like the chosen ones are no fault",
    ),
    "verbosityEnded": Threshold(
        Code.VERBOSITY, 0.3, "",
        "Fall of the share of samples that end.",
        "measured: 1.0 to 0 with chosen answers that are only longer",
    ),
    "shortcutExplains": Threshold(
        Code.SHORTCUT,
        0.98,
        "",
        "Share of the pairs that one feature of the answers tells apart: a Warning for punctuation, digits, list marks, refusal and language, an "
        "Info for length and words, which may be the preference itself.",
        "people's preferences never follow one mark that closely; the quickstart's tone shows in the first word in 0.97",
    ),
    "shortcutAccuracy": Threshold(
        Code.SHORTCUT, 0.9, "",
        "Held-out accuracy from which the model counts as having learned the feature.",
        "below, it has not",
    ),
    "refusingShare": Threshold(
        Code.OVER_REFUSING, 0.15, "",
        "Share of the samples that refuse.",
        "XSTest (2308.01263) counts refusals of harmless prompts the same way",
    ),
    "refusingErrors": Threshold(
        Code.OVER_REFUSING, 3.0, "standard errors",
        "How far that share is above the reference's, and above that of the chosen answers to held-out prompts.",
        "chance gives 3 once in a thousand",
    ),
    "refusingOpening": Threshold(
        Code.OVER_REFUSING, 0.3, "",
        "Share of the samples with one and the same opening of 4 words, for refusals without the usual words.",
        "beside refusingOpeningData",
    ),
    "refusingOpeningData": Threshold(
        Code.OVER_REFUSING, 0.05, "",
        "Most that the reference's and the chosen answers to the same prompts have of that opening.",
        "an opening that the data ask for is no fault",
    ),
    "overfittingRise": Threshold(
        Code.OVERFITTING, 0.03, "",
        "Rise of the held-out loss over its least, as a share of the loss at the start; at least 2 standard errors.",
        "0.02 nats of dpo's ln 2",
    ),
    "saturatedAccuracy": Threshold(
        Code.SATURATED, 0.99, "", "Training accuracy over the newest tenth of the steps.", "all pairs are won"
    ),
    "saturatedGradient": Threshold(
        Code.SATURATED, 0.02, "",
        "Norm of the gradient in these steps as a share of its median in the first tenth.",
        "measured: 0.0002 with beta 5",
    ),
    "saturatedLeft": Threshold(
        Code.SATURATED, 0.2, "", "Share of the steps that must be left.", "at the end of a run it costs nothing"
    ),
    "driftSamples": Threshold(
        Code.REFERENCE_DRIFT, 0.5, "nats a token",
        "Log-ratio of the policy's samples at temperature 1; with adapters, whose reference is at hand.",
        "2406.02900; measured: 0.3 in healthy runs",
    ),
    "driftData": Threshold(
        Code.REFERENCE_DRIFT, 5.0, "nats a token",
        "Mean log-ratio, without its sign, of the held-out answers: the same from the data.",
        "measured: 0.3 in healthy runs, 6 in a run whose samples broke",
    ),
    "mismatchSurprise": Threshold(
        Code.DISTRIBUTION_MISMATCH, 3.0, "",
        "Surprise (−log p ÷ entropy) at the chosen answers after their first tokens.",
        "measured: 0.7 to 2.4 on data that train well",
    ),
}  # fmt: skip


class Limits(Mapping[str, float]):
    """Every limit by its name: the job's own, else the default."""

    def __init__(self, own: Mapping[str, float]) -> None:
        """own: spec.diagnosis.thresholds."""
        self._values = {name: float(own.get(name, threshold.default)) for name, threshold in THRESHOLDS.items()}

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def unknown_words(own: Mapping[str, float]) -> str:
    """Names that are no threshold, each with the nearest ones that are; empty when all are known."""
    found = []
    for name in own:
        if name not in THRESHOLDS:
            near = difflib.get_close_matches(name, THRESHOLDS, n=3, cutoff=0.4)
            found.append(f"found {name[:64]}" + (f"; the nearest are {', '.join(near)}" if near else ""))
    return "; ".join(found)
