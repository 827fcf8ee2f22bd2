"""Figures of answers and of judgements. Pure functions."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from dpo_trainer.judging import Judged
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


def scored(judged: Sequence[Judged]) -> dict[str, Any]:
    """Fields of a RoundReport that tell of the scores; none from a judge that only compares."""
    each = [[score for score in one.scores if score is not None] for one in judged if one.scores is not None]
    there = [scores for scores in each if scores]
    if not there:
        return {}
    every = [score for scores in there for score in scores]
    return {"score_mean": math.fsum(every) / len(every), "score_best": math.fsum(map(max, there)) / len(there)}


def equal_share(judged: Sequence[Judged]) -> float:
    """Share of the judged prompts of which the judge says the same of all answers; 0 without any."""
    there = [one for one in judged if not one.problem]
    return sum(one.best is None for one in there) / len(there) if there else 0.0


def of_pairs(gaps: Sequence[float | None]) -> dict[str, Any]:
    """Fields of a RoundReport that tell of the chosen pairs. gaps: of the scores, None where there are none."""
    known = [gap for gap in gaps if gap is not None]
    return {"pairs": len(gaps), **({"gap_median": float(median(known))} if known else {})}


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
