"""What training.selection kept, for reports."""

from dpo_trainer.batches.rankings import Ranking, read_all
from dpo_trainer.runtime.workdir import WorkDir

_BARS = "▁▂▃▄▅▆▇█"
# Rankings that are shown: the first ones and the last.
_MOST = 4


def selected(work: WorkDir) -> list[tuple[str, str]]:
    """Name and text of each ranking; empty without a selection."""
    found = read_all(work.selection)
    rows: list[tuple[str, str]] = []
    for ranking in found[: _MOST - 1] + found[_MOST - 1 :][-1:]:
        rows.append((f"selection, epoch {ranking.epoch + 1}", ranking.sentence))
        if ranking.counts:
            rows.append((f"  {ranking.by} of the ranked", _histogram(ranking)))
        if ranking.sources:
            parts = (f"{name} {kept:,} of {ranked:,}" for name, (kept, ranked) in ranking.sources.items())
            rows.append(("  kept by source", ", ".join(parts)))
    return rows


def _histogram(ranking: Ranking) -> str:
    most = max(ranking.counts)
    bars = "".join(_BARS[(len(_BARS) - 1) * count // most] if count else " " for count in ranking.counts)
    return f"{ranking.edges[0]:.3g} {bars} {ranking.edges[-1]:.3g}"
