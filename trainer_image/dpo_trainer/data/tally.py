"""Which rows of a source are left out, and why: counted, written to dropped.jsonl, and said in errors."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from typing import IO

from dpo_operator.api.data import Dataset
from dpo_trainer.data.features import Features
from dpo_trainer.data.formats import Rejection
from dpo_trainer.data.formats.pairs import Reason
from dpo_trainer.data.rows import Rows
from dpo_trainer.runtime.errors import TrainerError, bad_dataset

# Most columns that a message names.
SHOWN_COLUMNS = 20


class Tally:
    """Counts the rows of one source that are left out, and writes them to dropped.jsonl.

    rows: that were read. features: of the pairs that were read. bad: of those left out, how many have a fault. first: where the first of them stands, and why it is left out.
    """

    def __init__(self, name: str, rows: Rows, file: IO[str]) -> None:
        self._name = name
        self._source = rows
        self._file = file
        self.rows = 0
        self.dropped: Counter[Reason] = Counter()
        self.bad = self.unseparated = self.prompt_repeated = 0
        self.features = Features()
        self.first_bad: tuple[int, Rejection] | None = None
        self.first = ""

    def drop(self, row: int, rejection: Rejection) -> None:
        """Count a row that is left out."""
        self.dropped[rejection.reason] += 1
        self.first = self.first or f"{self.where(row)}, {rejection.reason}: {rejection.detail}"
        if rejection.is_bad:
            self.bad += 1
            if self.first_bad is None or row < self.first_bad[0]:
                self.first_bad = (row, rejection)
        line = {
            "split": self._name, "row": row, "where": self.where(row), "reason": rejection.reason, "detail": rejection.detail,
        }  # fmt: skip
        self._file.write(json.dumps(line) + "\n")

    def where(self, row: int) -> str:
        """Where a row stands, for messages."""
        return self._source.where(row)

    @property
    def by_reason(self) -> dict[str, int]:
        """Rows left out, by reason."""
        return {reason.value: count for reason, count in sorted(self.dropped.items())}


def no_pair(name: str, spec: Dataset, tally: Tally) -> TrainerError:
    """The error for a source without a usable pair."""
    found = ", ".join(f"{reason} {count}" for reason, count in tally.by_reason.items()) or "no rows at all"
    first = f". The first is {tally.first}" if tally.first else ""
    return bad_dataset(
        f"{name}: no usable pair in {tally.rows} rows ({found}) of {spec.source}{first}; see data/dropped.jsonl in the work folder"
    )


def too_many_bad(name: str, limit: float, found: tuple[str, ...], tally: Tally) -> TrainerError:
    """The error for a source with more bad rows than filters.maxBadRows, the limit, allows. found: its columns."""
    assert tally.first_bad is not None
    row, rejection = tally.first_bad
    counts = ", ".join(f"{reason} {n}" for reason, n in tally.by_reason.items() if Rejection(Reason(reason), "").is_bad)
    columns = ""
    if any(tally.dropped[reason] for reason in (Reason.MISSING_COLUMN, Reason.WRONG_TYPE, Reason.OTHER_FORMAT)):
        columns = f" The columns found are {listed(found)}."
    return bad_dataset(
        f"{name}: {tally.bad} of {tally.rows} rows ({tally.bad / tally.rows:.2%}) are unusable, and filters.maxBadRows allows "
        f"{limit:.2%}: {counts}. The first is row {row} (counting from 0; {tally.where(row)}), {rejection.reason}: "
        f"{rejection.detail}.{columns} All are listed in data/dropped.jsonl in the work folder; repair them, or raise "
        "filters.maxBadRows"
    )


def listed(columns: Iterable[str]) -> str:
    """Names of columns, for a message."""
    return ", ".join(itertools.islice(columns, SHOWN_COLUMNS)) or "none"
