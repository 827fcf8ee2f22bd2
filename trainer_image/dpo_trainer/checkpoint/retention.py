"""Which checkpoints stay, by keepLast and keepBest."""

from collections.abc import Mapping


def retained(costs: Mapping[int, float | None], newest: int, keep_last: int, keep_best: int) -> set[int]:
    """Steps of the checkpoints that stay.

    costs: evaluation result by step, less is better, None without an evaluation. newest: the step that was just committed. Later
    steps were refused when this attempt began, or it would have resumed from them, so they are deleted.
    """
    usable = {step: cost for step, cost in costs.items() if step <= newest}
    last = sorted(usable, reverse=True)[: max(1, keep_last)]
    # Ties go to the later step: it has seen more data.
    best = sorted((cost, -step) for step, cost in usable.items() if cost is not None)[:keep_best]
    return {newest, *last, *(-step for _, step in best)}
