"""How much losses, margins and log-ratios vary between pairs, and the same by source of a mixture: what diagnosis looks at."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dpo_trainer.losses.metrics import Sums, masked_sum
from dpo_trainer.losses.objective import Logps, Objective


def spread_sums(
    objective: Objective, logps: Logps, loss: Tensor, counts: Tensor, source: Tensor | None, sources: Sequence[str]
) -> Sums:
    """Sums over the examples that count; float64 scalars, to be read with those of metrics.sums.

    loss: [examples]. counts: bool [examples]. source: int64 [examples], numbers of names in sources; None when there is one source.
    """
    with torch.no_grad():
        present = logps.present & counts[:, None]
        both = present.all(dim=1)
        loss = loss.double()
        found: Sums = {"examples": counts.sum(), "loss_squares": masked_sum(loss * loss, counts)}
        if objective.needs_reference:
            found["logratio_abs_per_token"] = masked_sum(logps.log_ratios.abs() / logps.tokens.clamp(min=1), present)
            found["log_ratios"] = present.sum()
        if source is not None:
            rewards = objective.rewards(logps).double()
            margin = rewards[:, 0] - rewards[:, 1]
            # All sources at once: a mixture has up to 33, and this runs in each micro-batch.
            here = both[:, None] & (source[:, None] == torch.arange(len(sources), device=source.device))
            figures = {"pairs": torch.ones_like(margin), "right": (margin > 0).double(), "m": margin, "mm": margin**2}
            for key, values in figures.items():
                by_source = torch.where(here, values[:, None], 0.0).sum(dim=0)
                found |= {f"source/{name}/{key}": value for name, value in zip(sources, by_source, strict=True)}
        return {name: value.double() for name, value in found.items()}


def spread_means(found: Mapping[str, float], sources: Sequence[str] = ()) -> dict[str, float]:
    """margins_std and logratio_abs_per_token; for each source that has pairs, accuracy, mean and deviation of margins, and pairs.

    found: of spread_sums and metrics.sums. A figure without data is NaN.
    """
    pairs = found["moments/pairs"]
    values = {"margins_std": deviation(pairs, found["moments/m"], found["moments/mm"])}
    if "log_ratios" in found:
        count = found["log_ratios"]
        values["logratio_abs_per_token"] = found["logratio_abs_per_token"] / count if count else math.nan
    for name in sources:
        key = f"source/{name}"
        if count := found[f"{key}/pairs"]:
            values[f"{key}/accuracies"] = found[f"{key}/right"] / count
            values[f"{key}/margins"] = found[f"{key}/m"] / count
            values[f"{key}/margins_std"] = deviation(count, found[f"{key}/m"], found[f"{key}/mm"])
            values[f"{key}/pairs"] = count
    return values


def standard_errors(found: Mapping[str, float]) -> dict[str, float]:
    """Number of examples, and the standard errors of the mean loss and of the mean margin, by example. found: as above."""
    examples, pairs = found["examples"], found["moments/pairs"]
    values = {"pairs": examples, "loss_se": math.nan, "rewards/margins_se": math.nan}
    if examples:
        # kto's loss is the mean over answers, of which an example may have two.
        share = examples / found["units"]
        values["loss_se"] = share * deviation(examples, found["loss"], found["loss_squares"]) / math.sqrt(examples)
    if pairs:
        values["rewards/margins_se"] = deviation(pairs, found["moments/m"], found["moments/mm"]) / math.sqrt(pairs)
    return values


def deviation(count: float, total: float, squares: float) -> float:
    """Standard deviation from a number, a sum and a sum of squares, with count - 1 degrees of freedom; NaN below two."""
    if count < 2:
        return math.nan
    return math.sqrt(max(0.0, (squares - total * total / count) / (count - 1)))
