"""The committed result of ranking the pairs for an epoch, in the folder selection of a training.

epoch-N.npy   int64 [kept]  the pairs that are trained on, hardest first
epoch-N.json  how they were chosen, and the digest of that list; written last
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dpo_operator.api.trainingparts.selection import Selection
from dpo_trainer.batches.sampler import Indices
from dpo_trainer.batches.selected import Ease, choose
from dpo_trainer.checkpoint.plain_files import read_plain
from dpo_trainer.runtime.files import commit

# Names of the files, also in the mirror.
FILE = re.compile(r"epoch-[0-9]{1,9}\.(json|npy)", re.ASCII)
# A list of a hundred million pairs has about as many bytes.
MOST_BYTES = 1 << 30
BINS = 20


class Ranking(BaseModel):
    """What came of ranking the pairs for an epoch.

    key: of settings, data and epoch that it belongs to. step: last finished one when the pairs were ranked. pairs: in the data. ranked, kept: of
    them. sha256: of the kept pairs. lowest, highest: figures of the kept pairs, in what `by` measures; None where none is finite. wrong_sign: share of the
    ranked pairs with a gap below 0. not_finite: ranked pairs without a figure. edges, counts: histogram of the figures, whose ends also hold
    what is beyond them. sources: kept and ranked pairs of each source of a mixture. tokens: that went through the model to rank them. seconds: that
    it took.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: int = Field(default=1, ge=1, le=1)
    key: str
    epoch: int
    step: int
    by: str
    pairs: int
    ranked: int
    kept: int
    sha256: str
    lowest: float | None
    highest: float | None
    wrong_sign: float
    not_finite: int
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    sources: dict[str, tuple[int, int]] = {}
    tokens: int = 0
    seconds: float = 0.0

    @property
    def sentence(self) -> str:
        """In words, for logs, findings and reports."""
        cost = f"; {self.tokens:,} tokens in {self.seconds:.3g} s" if self.tokens else ""
        span = f" between {self.lowest:.4g} and {self.highest:.4g}" if self.lowest is not None else ""
        lost = f", {self.not_finite} without a finite figure" if self.not_finite else ""
        return (
            f"Epoch {self.epoch + 1} trains on {self.kept:,} of {self.ranked:,} ranked pairs, with {self.by}{span}; {self.wrong_sign:.1%} of the ranked have "
            f"a gap below 0{lost}{cost}."
        )


def key_of(selection: Selection, *, dataset: str, seed: int, shuffle: bool, batch: int, epoch: int) -> str:
    """What a ranking belongs to, as SHA-256, hex. dataset: digest. batch: pairs of a step."""
    facts = {
        "selection": selection.model_dump(mode="json", exclude={"order"}), "dataset": dataset, "seed": seed, "shuffle": shuffle, "batch": batch,
        "epoch": epoch,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def rank(
    selection: Selection,
    figures: Ease,
    gaps: Ease,
    ranked: Indices,
    *,
    key: str,
    epoch: int,
    step: int,
    pairs: int,
    seed: int,
    sources: Mapping[str, int],
    tokens: int = 0,
    seconds: float = 0.0,
) -> tuple[Ranking, Indices]:
    """Choose the pairs that are kept: int64, hardest first; and how.

    figures: float64 [ranked], what selection.by measures. gaps: float64 [ranked], below 0 where the rejected answer is ahead. sources: pairs of each source of a mixture, in the
    order in which they follow each other in the data.
    """
    ease = -figures if selection.by == "heldOutLoss" else figures
    kept = choose(ease, ranked, selection.kept(len(ranked)), seed=seed)
    of_kept = figures[np.searchsorted(ranked, kept)]
    known, finite = of_kept[np.isfinite(of_kept)], figures[np.isfinite(figures)]
    counts, edges = _histogram(finite)
    made = Ranking(
        key=key,
        epoch=epoch,
        step=step,
        by=selection.by,
        pairs=pairs,
        ranked=len(ranked),
        kept=len(kept),
        sha256=digest(kept),
        lowest=float(known.min()) if len(known) else None,
        highest=float(known.max()) if len(known) else None,
        wrong_sign=float((gaps < 0).mean()) if len(gaps) else 0.0,
        not_finite=len(figures) - len(finite),
        edges=edges,
        counts=counts,
        sources=_of_sources(ranked, kept, sources),
        tokens=tokens,
        seconds=round(seconds, 3),
    )
    return made, kept


def write(folder: Path, ranking: Ranking, kept: Indices) -> None:
    """Commit a ranking: after a crash it is there as a whole, or not at all. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, kept.astype("<i8"), allow_pickle=False)
    commit(folder / f"epoch-{ranking.epoch}.npy", content.getvalue())
    commit(folder / f"epoch-{ranking.epoch}.json", ranking.model_dump_json(indent=1).encode())


def read(folder: Path, epoch: int, *, key: str, pairs: int, kept: int) -> tuple[Ranking, Indices] | str:
    """A committed ranking and its list, or why there is none that can be used. pairs: in the data. kept: how many the list has."""
    try:
        found = Ranking.model_validate_json(read_plain(folder / f"epoch-{epoch}.json", limit=1 << 20))
        content = read_plain(folder / f"epoch-{epoch}.npy", limit=MOST_BYTES)
        listed = np.load(io.BytesIO(content), allow_pickle=False)
    except FileNotFoundError as error:
        return f"there is no {Path(str(error.filename)).name}"
    except (OSError, ValidationError, ValueError, EOFError) as error:
        return f"epoch-{epoch} can't be read ({type(error).__name__})"
    if found.key != key:
        return f"epoch-{epoch}.json is of other settings or data"
    fits = listed.dtype == np.int64 and listed.shape == (kept,) and digest(listed) == found.sha256
    if not fits or len(np.unique(listed)) != kept or int(listed.min()) < 0 or int(listed.max()) >= pairs:
        return f"epoch-{epoch}.npy is not the list that epoch-{epoch}.json describes"
    return found, listed


def read_all(folder: Path) -> list[Ranking]:
    """Rankings of a training, in the order of the epochs; what can't be read is left out."""
    found = []
    for path in folder.glob("epoch-*.json"):
        try:
            found.append(Ranking.model_validate_json(read_plain(path, limit=1 << 20)))
        except (OSError, ValidationError):
            continue
    return sorted(found, key=lambda ranking: ranking.epoch)


def has(folder: Path, sha256: str) -> bool:
    """Whether a committed list has a digest, its numbers and what describes it alike."""
    return any(found.sha256 == sha256 == _digest_of(folder, found.epoch) for found in read_all(folder))


def _digest_of(folder: Path, epoch: int) -> str:
    try:
        return digest(
            np.load(io.BytesIO(read_plain(folder / f"epoch-{epoch}.npy", limit=MOST_BYTES)), allow_pickle=False)
        )
    except (OSError, ValueError, EOFError):
        return ""


def digest(kept: Indices) -> str:
    """SHA-256 of a list of pairs, hex."""
    return hashlib.sha256(kept.astype("<i8").tobytes()).hexdigest()


def _histogram(values: Ease) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Counts and edges over all but the hundredth at each end, which the first and the last bin hold, too."""
    if not len(values):
        return (), ()
    low, high = np.quantile(values, [0.01, 0.99])
    counts, edges = np.histogram(np.clip(values, low, high), bins=BINS)
    return tuple(counts.tolist()), tuple(edges.tolist())


def _of_sources(ranked: Indices, kept: Indices, sources: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    ends = np.cumsum(list(sources.values()))
    counts = [np.bincount(np.searchsorted(ends, part, side="right"), minlength=len(ends)) for part in (kept, ranked)]
    return {name: (int(counts[0][i]), int(counts[1][i])) for i, name in enumerate(sources)} if len(ends) > 0 else {}
