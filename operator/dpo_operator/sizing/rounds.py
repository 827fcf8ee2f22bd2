"""What rounds cost at most: tokens of answers, requests to a judge's endpoint, and room on the volume."""

import math
from dataclasses import dataclass

from dpo_operator.api.iterative import Endpoint, Iterative
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.sizing.export import Stored

# Bytes that an answer's token takes on the volume: its id, and its log-prob.
TOKEN_BYTES = 8


@dataclass(frozen=True)
class RoundsCost:
    """Of the whole job, at most. prompts: of a round; None where their number is not known, and all that depends on it is for 1,000 then.

    tokens: of answers, each as long as iterative.generation.maxNewTokens. calls: requests of an endpoint, without retries; None for other judges.
    disk: bytes of what rounds leave on the volume, beside the job's own export. weights: bytes of them on each GPU, or CPU, that generates.
    """

    rounds: int
    prompts: int | None
    answers: int
    tokens: int
    calls: int | None
    disk: float
    weights: float

    @property
    def says(self) -> str:
        """A sentence about answers and requests, which need no model to be known."""
        of_prompts = "" if self.prompts is not None else ", with 1,000 prompts in each"
        calls = "" if self.calls is None else f", and {self.calls:,} requests to the judge"
        return (
            f"spec.iterative: {self.rounds} rounds{of_prompts} generate up to {self.answers:,} answers of {self.tokens:,} tokens in all"
            f"{calls}; dpo plan also says how much room they need"
        )


def estimate(spec: DPOJobSpec, stored: Stored, pairs: int | None, weights: float = 0.0) -> RoundsCost | None:
    """None for a job without rounds. pairs: training pairs, None if unknown; each has a prompt of its own at most. weights: bytes of the model."""
    rounds = spec.iterative
    if rounds is None:
        return None
    prompts = _prompts(rounds, pairs)
    each = 1000 if prompts is None else prompts
    # Policies that are compared: the initial one, and that of each round; of the last one only with evaluateLast.
    compared = rounds.rounds + (1 if rounds.evaluate_last else 0) if rounds.win_rate.prompts else 0
    answers = rounds.rounds * each * rounds.generation.samples_per_prompt + compared * rounds.win_rate.prompts
    tokens = answers * rounds.generation.max_new_tokens
    kept = spec.checkpoint.keep_last * stored.checkpoint * spec.world_size
    endpoint = rounds.judge.endpoint
    calls = None if endpoint is None else _calls(rounds, endpoint, each, max(0, compared - 1))
    return RoundsCost(
        rounds=rounds.rounds,
        prompts=prompts,
        answers=answers,
        tokens=tokens,
        calls=calls,
        weights=weights / rounds.generation.tensor_parallel,
        disk=TOKEN_BYTES * tokens + rounds.rounds * (stored.export + kept),
    )


def _prompts(rounds: Iterative, pairs: int | None) -> int | None:
    if rounds.prompts_per_round is not None:
        return rounds.prompts_per_round
    known = pairs if rounds.prompts is None else rounds.prompts.limit
    return None if known is None else max(1, (known - rounds.win_rate.prompts) // rounds.rounds)


def _calls(rounds: Iterative, endpoint: Endpoint, prompts: int, comparisons: int) -> int:
    """Best and worst of k answers take up to 3 k / 2 comparisons; win rates two for each prompt, against the one before and the initial one."""
    samples = rounds.generation.samples_per_prompt
    if endpoint.mode == "score":
        return rounds.rounds * prompts * samples + (comparisons + 1) * rounds.win_rate.prompts
    orders = 2 if endpoint.both_orders else 1
    return orders * (rounds.rounds * prompts * math.ceil(1.5 * samples) + 2 * comparisons * rounds.win_rate.prompts)
