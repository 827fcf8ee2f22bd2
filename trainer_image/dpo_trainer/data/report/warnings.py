"""Warnings about the data: what looks wrong in a dataset report and what to do. They never stop the job."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from dpo_operator.api.diagnosis import Finding, Severity

# Fewer pairs than these give a noisy result, to train on or to evaluate with.
FEW_PAIRS = 100
# Shares of fewer pairs than these are noise.
TOO_FEW_FOR_SHARES = 20
ONE_SIDED = 0.65
# A side that is longer by less than this gives nothing to win by: a word changed makes many pairs unequal by a token.
LENGTH_RATIO, LENGTH_DIFFERENCE = 1.1, 3
PROMPT_SHARE = 0.9
TRUNCATED = 0.05
MERGED = 0.05
ALIKE = 0.5
LEFT_OUT = 0.2
UNSEPARATED = 0.2
COPIES = 0.05
CONTRADICTIONS = 0.01
# Severity and field to change, by code of dpo_operator.api.diagnosis.WARNINGS. Info: healthy runs have it, too.
KINDS: dict[str, tuple[Severity, str]] = {
    "FewTrainingPairs": ("Info", "data.train"),
    "FewEvaluationPairs": ("Info", "data.eval"),
    "RowsLeftOut": ("Warning", "data.filters"),
    "NoSeparator": ("Warning", "data.train.format"),
    "RepeatedPrompt": ("Warning", "data.train"),
    "LostReasoning": ("Info", "data.template.keepReasoning"),
    "LengthBias": ("Info", "method.name"),
    "LongPrompts": ("Info", "data.maxPromptLength"),
    "TruncatedPairs": ("Warning", "data.maxLength"),
    "BoundaryMerges": ("Warning", "data.train"),
    "NearIdenticalAnswers": ("Info", "method.nllWeight"),
    "CopiedPairs": ("Info", "data.filters.dropDuplicates"),
    "ContradictingPairs": ("Info", "data.train"),
    "SharedPrompts": ("Info", "data.evalFraction"),
    "OneKindOfAnswer": ("Warning", "data.train"),
    "UnbalancedKinds": ("Info", "method.desirableWeight"),
}


def find(report: Mapping[str, Any]) -> list[Finding]:
    """Warnings about a report of build.build, those about training first."""
    return [
        Finding(code=code, severity=KINDS[code][0], setting=KINDS[code][1], cause=text) for code, text in _find(report)
    ]


def _find(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [
        warning for name, split in report["splits"].items() for warning in _of_split(name, split, report["limits"])
    ]
    if report["overlap"] is not None:
        found += _of_overlap(report["overlap"], report["splits"]["eval"]["pairs"])
    for name, split in report["splits"].items():
        if split["pairs"] in (split["desirable"], split["undesirable"]):
            consequence = (
                "kto can't learn what to prefer from one kind alone"
                if name == "train"
                else "without both there is no eval_reward_margin, only eval_loss and eval_reward_accuracy"
            )
            kind = "an undesirable" if split["desirable"] else "a desirable"
            found.append(("OneKindOfAnswer", f"{name}: no example has {kind} answer; {consequence}"))
    train = report["splits"]["train"]
    if (weights := report["kto_weights"]) is not None and set(weights.values()) != {1.0}:
        text = (
            f"train: {train['desirable']:,} examples have a desirable answer and {train['undesirable']:,} an undesirable one; for "
            f"kto, set method.desirableWeight {weights['desirable']:g} and method.undesirableWeight {weights['undesirable']:g}"
        )
        found.append(("UnbalancedKinds", text))
    return found


def _of_split(name: str, split: Mapping[str, Any], limits: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    pairs = split["pairs"]
    if pairs < FEW_PAIRS and name == "train":
        yield (
            "FewTrainingPairs",
            f"{name}: only {_pairs(pairs)}; expect a noisy result, and more from more data than from more epochs",
        )
    if pairs < FEW_PAIRS and name != "train":
        yield (
            "FewEvaluationPairs",
            f"{name}: only {_pairs(pairs)}, so an accuracy has an error of ±{0.98 / math.sqrt(max(pairs, 1)):.0%}; use more",
        )
    if sum(split.get("dropped", {}).values()) > LEFT_OUT * split.get("rows", 0):
        dropped = split["dropped"]
        most = max(sorted(dropped), key=dropped.__getitem__)
        yield (
            "RowsLeftOut",
            (
                f"{name}: {sum(dropped.values()):,} of {split['rows']:,} rows ({sum(dropped.values()) / split['rows']:.0%}) were left "
                f"out, most of them for {most} ({dropped[most]:,}); data/dropped.jsonl lists them"
            ),
        )
    # Counted where pairs are read, before they are weighted.
    if split.get("glued", 0) > UNSEPARATED * split.get("kept", 0):
        yield (
            "NoSeparator",
            (
                f"{name}: in {split['glued']:,} pairs of plain text nothing stands between the prompt's last word and the answer's first; "
                "write a separator into the prompt, or set format to messages for the chat template"
            ),
        )
    if split.get("repeated", 0) > UNSEPARATED * split.get("kept", 0):
        yield (
            "RepeatedPrompt",
            (
                f"{name}: in {split['repeated']:,} pairs both answers begin with the prompt, which the model then reads twice; leave it "
                "out of the answers"
            ),
        )
    if split.get("lost_reasoning", 0):
        yield (
            "LostReasoning",
            (
                f"{name}: the chat template leaves reasoning out of {_pairs(split['lost_reasoning'])}, which data.template.keepReasoning allows"
            ),
        )
    if pairs >= TOO_FEW_FOR_SHARES:
        yield from _of_shares(name, split, limits)


def _of_shares(name: str, split: Mapping[str, Any], limits: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    pairs = split["pairs"]
    for key, rule in (("chosen_longer", "longer"), ("chosen_shorter", "shorter")):
        if (split[key] or 0) > ONE_SIDED and _matters(split):
            yield (
                "LengthBias",
                (
                    f"{name}: the chosen answer is the {rule} one in {split[key]:.0%} of the pairs, so that a model can win by "
                    f"length alone. Compare its accuracy with the length-only baseline, {split['length_baseline']:.1%}; method "
                    "simpo, ln-dpo or ld-dpo, or filters.maxLengthRatio, lessens this"
                ),
            )
    if (split["prompt_share"] or 0) > PROMPT_SHARE:
        yield (
            "LongPrompts",
            (
                f"{name}: {split['prompt_share']:.0%} of the tokens are prompt, and little of what is computed is learned from; "
                "data.maxPromptLength shortens prompts"
            ),
        )
    if split["truncated"] > TRUNCATED * pairs:
        yield (
            "TruncatedPairs",
            (
                f"{name}: {split['truncated']:,} of {pairs:,} pairs ({split['truncated'] / pairs:.0%}) were cut to data.maxLength "
                f"{limits['max_length']:,}; raise it, or leave such pairs out with data.truncation drop"
            ),
        )
    if split.get("boundary_merges", 0) > MERGED * pairs:
        yield (
            "BoundaryMerges",
            (
                f"{name}: in {split['boundary_merges']:,} pairs a token would span the end of the prompt, so that the answer's first "
                "token is not what the model would write; often prompts end with a space that belongs to the answer"
            ),
        )
    if (split["near_identical"] or 0) > ALIKE:
        yield (
            "NearIdenticalAnswers",
            (
                f"{name}: in {split['near_identical']:.0%} of the pairs the answers are nearly the same, and dpo then often lowers "
                "both log-probs; watch logps/chosen, and consider method.nllWeight"
            ),
        )
    if split["duplicate_pairs"] > COPIES * pairs:
        yield (
            "CopiedPairs",
            f"{name}: {split['duplicate_pairs']:,} of {pairs:,} pairs are copies of earlier ones; see filters.dropDuplicates",
        )
    if split["contradicting_pairs"] > CONTRADICTIONS * pairs:
        yield (
            "ContradictingPairs",
            (
                f"{name}: {split['contradicting_pairs']:,} of {pairs:,} pairs prefer what an earlier pair rejects; they teach "
                "nothing, and no model can be right about both"
            ),
        )


def _of_overlap(overlap: Mapping[str, int], pairs: int) -> Iterator[tuple[str, str]]:
    if overlap["prompts"]:
        whole = f", {overlap['pairs']:,} of them with the same answers" if overlap["pairs"] else ""
        yield (
            "SharedPrompts",
            (
                f"eval: {overlap['prompts']:,} of {pairs:,} pairs have a prompt that is in train too{whole}; their accuracy says "
                "little about new prompts. data.evalFraction holds pairs out without that"
            ),
        )


def _pairs(count: int) -> str:
    return f"{count:,} pair" if count == 1 else f"{count:,} pairs"


def _matters(split: Mapping[str, Any]) -> bool:
    """Whether answers of one pair differ in length by more than a word."""
    ratio, difference = split["length_ratio"] or 1.0, split["length_difference"] or 0.0
    return bool(ratio >= LENGTH_RATIO and difference >= LENGTH_DIFFERENCE)
