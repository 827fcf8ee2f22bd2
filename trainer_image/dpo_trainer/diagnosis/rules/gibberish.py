"""Gibberish: the policy's samples are text that nobody would write, or its data became impossible to it."""

from dpo_operator.api.diagnosis import Code, Finding
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import RunRecord, mean, number
from dpo_trainer.diagnosis.rules import displacement, shortcut, verbosity
from dpo_trainer.diagnosis.rules.generations import Generations, generations, surprising
from dpo_trainer.diagnosis.saying import finding, instead, other_rate, percent

_LEAST_BETA, _USUAL_BETA = 0.05, 0.1
# Drift of the data's answers, nats a token, from which a rate is not a few but many times too large.
_FAR = 3.0
# Steps over which the drift of training lines is averaged.
_STEPS = 4
# Answers of so few tokens are no answers where the data's have more.
_NOTHING, _SOMETHING = 2.0, 6.0


def check(record: RunRecord, limits: Limits) -> Finding | None:
    """State that the policy writes broken text. Answers that are only endless, and displacement by similar answers, have rules of their own."""
    if displacement.by_similar_answers(record, limits) or shortcut.breaks_samples(record, limits):
        return None
    found = generations(record, limits)
    said = _from_samples(record, found, limits) if found is not None else None
    fall = _fall(record)
    if said is None and (fall is None or fall > -limits["gibberishDrift"]):
        return None
    cause = said or (
        f"The chosen answers became {-(fall or 0):.2g} nats a token less likely than the reference has them: the policy no longer writes such text."
    )
    setting, suggestion = _advice(record, fall)
    return finding(
        Code.GIBBERISH, "Unhealthy", record.step, cause,
        [
            ("samples/t1/own_nll", found.value("t1/own_nll") if found else None, _own_limit(found, limits)),
            ("samples/greedy/repeated_4grams", found.value("greedy/repeated_4grams") if found else None, _repeat_limit(found, limits)),
            ("samples/greedy/ended", found.value("greedy/ended") if found else None, None),
            ("logratio_per_token/chosen", fall, -limits["gibberishDrift"]),
        ],
        setting, suggestion,
    )  # fmt: skip


def _from_samples(record: RunRecord, found: Generations, limits: Limits) -> str | None:
    if surprising(found, limits):
        return (
            f"At temperature 1 the policy's answers cost {found.value('t1/own_nll'):.2g} nats a token under itself, {found.ratio('t1/own_nll'):.1f} "
            "times as much as the reference's under the reference: it writes text that nobody would write."
        )
    rise = found.change("greedy/repeated_4grams")
    if rise is not None and rise >= limits["gibberishRepeated"] and not verbosity.is_only_endless(record, limits):
        return (
            f"{percent(found.value('greedy/repeated_4grams') or 0)} of the 4-grams in the policy's greedy answers repeat earlier ones, against "
            f"{percent(found.reference('greedy/repeated_4grams') or 0)} in the reference's: it goes in circles."
        )
    tokens = [found.value(f"{kind}/tokens") for kind in ("greedy", "t1")]
    usual = record.usual_tokens("chosen")
    before = found.reference("greedy/tokens")
    short = all(value is not None and value <= _NOTHING for value in tokens)
    if short and usual is not None and usual >= _SOMETHING and before is not None and before >= _SOMETHING:
        return f"The policy's answers have {tokens[0]:.2g} tokens, where the reference's had {before:.2g} and the chosen ones {usual:.2g}: it writes nothing."
    return None


def _fall(record: RunRecord) -> float | None:
    """Log-ratio a token of the chosen answers: of the newest evaluation or steps, whichever is lower."""
    held = number(record.evals[-1], "logratio_per_token/chosen") if record.evals else None
    newest = mean(record.train[-_STEPS:], "logratio_per_token/chosen") if len(record.train) >= _STEPS else None
    known = [value for value in (held, newest.value if newest else None) if value is not None]
    return min(known, default=None)


def _advice(record: RunRecord, fall: float | None) -> tuple[str, str]:
    beta = record.spec.method.strength
    if record.starts_level and beta < _LEAST_BETA:
        return (
            "method.beta",
            f"Pull harder to the reference: {instead('method.beta', _USUAL_BETA, beta)}; if that is not enough, {other_rate(record.spec, 0.1)}.",
        )
    factor = 0.01 if fall is not None and fall <= -_FAR else 0.1
    return "training.learningRate", f"The steps are too large: {other_rate(record.spec, factor)}."


def _own_limit(found: Generations | None, limits: Limits) -> float | None:
    before = found.reference("t1/own_nll") if found else None
    return None if before is None else limits["gibberishOwnNll"] * before


def _repeat_limit(found: Generations | None, limits: Limits) -> float | None:
    before = found.reference("greedy/repeated_4grams") if found else None
    return None if before is None else before + limits["gibberishRepeated"]
