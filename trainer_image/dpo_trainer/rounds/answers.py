"""Figures of answers alone: generate makes them without a judge's libraries. Pure functions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpo_trainer.rounds.units import Unit


def answered(units: Sequence[Unit]) -> dict[str, Any]:
    """Fields of a RoundReport that tell of the answers."""
    answers = [one for unit in units for answers in unit.answers for one in answers]
    return {
        "prompts": sum(len(unit.rows) for unit in units),
        "answers": len(answers),
        "ended_share": sum(answer.ended for answer in answers) / len(answers) if answers else None,
        "generation_tokens": sum(len(answer.ids) for answer in answers),
    }


def identical_share(units: Sequence[Unit]) -> float:
    """Share of the prompts whose answers all have the same tokens; 0 without prompts."""
    alike = [len({one.ids.tobytes() for one in answers}) == 1 for unit in units for answers in unit.answers]
    return sum(alike) / len(alike) if alike else 0.0


def divergence(units: Sequence[Unit], initial: Sequence[np.ndarray]) -> dict[str, Any]:
    """KL divergence of the policy that answered from the initial one, nats an answer, and its own NLL, nats a token.

    Of answers at temperature 1, by whose log-ratios the divergence is estimated without bias. initial: their log-probs under the initial policy.
    """
    answers = [one for unit in units for answers in unit.answers for one in answers]
    if not answers:
        return {}
    own = np.array([answer.logp for answer in answers])
    tokens = sum(len(answer.ids) for answer in answers)
    return {
        "kl_to_initial": float((own - np.concatenate(initial)).mean()),
        "own_nll": float(-own.sum() / max(1, tokens)),
    }
