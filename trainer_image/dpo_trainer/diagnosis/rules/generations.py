"""What sample answers show, for several rules: figures beside those of the reference."""

from dataclasses import dataclass

from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import Line, RunRecord, number


@dataclass(frozen=True)
class Generations:
    """Sample answers of the newest evaluation (now) and of the reference (before), and how many prompts they answer."""

    now: Line
    before: Line
    prompts: int

    def change(self, key: str) -> float | None:
        """How much a figure rose over the reference's."""
        now, before = number(self.now, f"samples/{key}"), number(self.before, f"samples/{key}")
        return None if now is None or before is None else now - before

    def ratio(self, key: str) -> float | None:
        """A figure as a multiple of the reference's."""
        now, before = number(self.now, f"samples/{key}"), number(self.before, f"samples/{key}")
        return None if now is None or not before else now / before

    def value(self, key: str) -> float | None:
        """A figure now."""
        return number(self.now, f"samples/{key}")

    def reference(self, key: str) -> float | None:
        """A figure of the reference."""
        return number(self.before, f"samples/{key}")


def generations(record: RunRecord, limits: Limits) -> Generations | None:
    """Sample answers of the newest evaluation that has some; None without any, or with too few prompts."""
    for line in reversed(record.evals):
        prompts = number(line, "samples/prompts")
        if prompts is not None:
            enough = prompts >= limits["samplePrompts"]
            return Generations(line, record.start, int(prompts)) if enough else None
    return None


def surprising(found: Generations, limits: Limits) -> bool:
    """Whether the policy's own samples at temperature 1 are far less sure than the reference's: text that nobody would write."""
    ratio, rise = found.ratio("t1/own_nll"), found.change("t1/own_nll")
    return (
        ratio is not None
        and rise is not None
        and ratio >= limits["gibberishOwnNll"]
        and rise >= limits["gibberishOwnNllRise"]
    )


def fits_the_cap(record: RunRecord) -> bool:
    """Whether the data's chosen answers fit into a sample, so that a sample that does not end says something."""
    for name in ("eval", "train"):
        length = record.split(name).get("length", {}).get("chosen", {})
        if length:
            return bool(length.get("p95", 0) <= record.spec.evaluation.sample_tokens)
    return False
