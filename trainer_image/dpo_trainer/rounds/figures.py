"""Figures of judgements. Pure functions."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from dpo_trainer.judging import Judged


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
