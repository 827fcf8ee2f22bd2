"""NotTheFineTunedModel: the answers are not this model's language."""

from dpo_operator.api.diagnosis import Code, Finding
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import RunRecord, number
from dpo_trainer.diagnosis.rules.generations import fits_the_cap
from dpo_trainer.diagnosis.saying import finding, percent


def check(record: RunRecord, limits: Limits) -> Finding | None:
    """State that the model was not fine-tuned on this kind of text. Untrained endings alone are an Info: some start so on purpose."""
    start = record.start
    sides = [number(start, f"token_accuracy/{side}") for side in ("chosen", "rejected")]
    surprises = [
        number(start, f"surprise/{part}_{side}") for part in ("first4", "rest") for side in ("chosen", "rejected")
    ]
    known = [side for side in sides if side is not None]
    if known and (number(start, "surprise/pairs") or 0) >= limits["surprisePairs"]:
        accuracy, least = max(known), min((s for s in surprises if s is not None), default=0.0)
        lost = accuracy < limits["notTunedAccuracyAlone"]
        surprised = accuracy < limits["notTunedAccuracy"] and least >= limits["notTunedSurprise"]
        if lost or surprised:
            more = f", and they surprise it {least:.2g} times as much as its own text" if surprised else ""
            return finding(
                Code.NOT_THE_FINE_TUNED_MODEL, "Unhealthy", 0,
                f"Before training the model would write {percent(accuracy)} of the answers' tokens itself{more}: "
                "it was not fine-tuned on this kind of text.",
                [("token_accuracy/chosen", sides[0], limits["notTunedAccuracy"]), ("token_accuracy/rejected", sides[1], limits["notTunedAccuracy"]),
                 ("surprise/rest_chosen", surprises[2], limits["notTunedSurprise"]), ("nll_per_token/chosen", number(start, "nll_per_token/chosen"), None)],
                "model.name", f"Fine-tune on the chosen answers first, or set model.name to the fine-tuned model instead of {record.spec.model.name[-60:]}.",
            )  # fmt: skip
    ended = [number(start, f"samples/{kind}/ended") for kind in ("greedy", "t1")]
    prompts = number(start, "samples/prompts") or 0
    limit = limits["notTunedEnded"]
    if (
        prompts < limits["samplePrompts"]
        or not fits_the_cap(record)
        or not all(e is not None and e < limit for e in ended)
    ):
        return None
    return finding(
        Code.NOT_THE_FINE_TUNED_MODEL, "Info", 0,
        f"Before training {percent(max(e for e in ended if e is not None))} of the model's own answers end: it knows no end of an answer, as a model "
        "that was not fine-tuned on chats.",
        [("samples/greedy/ended", ended[0], limit), ("samples/t1/ended", ended[1], limit)],
        "model.name", "Unless you want to start from a base model, fine-tune it on the chosen answers first.",
    )  # fmt: skip
