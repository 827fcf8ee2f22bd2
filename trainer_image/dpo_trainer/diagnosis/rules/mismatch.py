"""DistributionMismatch: the chosen answers are far from what the model would say itself."""

from dpo_operator.api.diagnosis import Code, Finding
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import RunRecord, number
from dpo_trainer.diagnosis.saying import finding


def check(record: RunRecord, limits: Limits) -> Finding | None:
    """Note that the data were written by something else than the model; they may still teach it."""
    surprise, limit = number(record.start, "surprise/rest_chosen"), limits["mismatchSurprise"]
    pairs = number(record.start, "surprise/pairs") or 0
    if surprise is None or surprise < limit or pairs < limits["surprisePairs"]:
        return None
    return finding(
        Code.DISTRIBUTION_MISMATCH, "Info", 0,
        f"The chosen answers surprise the model {surprise:.2g} times as much as its own text: others wrote them, and what it learns may not show in what it says.",
        [("surprise/rest_chosen", surprise, limit), ("nll_per_token/chosen", number(record.start, "nll_per_token/chosen"), None)],
        "data.train", "Fine-tune on the chosen answers first, or use pairs that the model itself answered.",
    )  # fmt: skip
