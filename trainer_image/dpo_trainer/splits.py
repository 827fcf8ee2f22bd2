"""One split of the data: rows in, tokenized pairs and counts out."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from dpo_operator.api.data import Columns, Data, Dataset
from dpo_trainer.dataset import PairDataset, TokenPair
from dpo_trainer.errors import TrainerError, bad_dataset, invalid_configuration
from dpo_trainer.formats import Format, Pair, Reason, Rejection, detect, normalize
from dpo_trainer.tokenization import Counts, PairTokenizer

# Rows that are looked at to decide on the format.
LOOK_AT = 64


@dataclass(frozen=True)
class Split:
    """A split that passed its checks.

    rows: rows that were read. dropped: rows left out, by reason.
    """

    dataset: PairDataset
    format: Format
    rows: int
    dropped: dict[str, int]
    counts: Counts


class _Tally:
    """Counts and writes down the rows of one split that are left out."""

    def __init__(self, name: str, file: IO[str]) -> None:
        self._name = name
        self._file = file
        self.rows = 0
        self.dropped: Counter[Reason] = Counter()
        self.bad = 0
        self.first_bad: tuple[int, Rejection] | None = None
        self.columns: tuple[str, ...] = ()
        self.has_confidence = False

    def drop(self, row: int, rejection: Rejection) -> None:
        self.dropped[rejection.reason] += 1
        if rejection.is_bad:
            self.bad += 1
            if self.first_bad is None or row < self.first_bad[0]:
                self.first_bad = (row, rejection)
        line = {"split": self._name, "row": row, "reason": rejection.reason, "detail": rejection.detail}
        self._file.write(json.dumps(line) + "\n")

    @property
    def by_reason(self) -> dict[str, int]:
        return {reason.value: count for reason, count in sorted(self.dropped.items())}


def read_split(
    name: str,
    rows: Iterable[Any],
    spec: Dataset,
    data: Data,
    tokenizer: PairTokenizer,
    dropped_rows: IO[str],
    progress: Callable[[int], None] = lambda _: None,
) -> Split:
    """Normalize, filter and tokenize the rows of one split.

    name: train or eval, as the dropped rows and the messages call it.
    rows: decoded rows and Rejections, in the order of their numbers. progress: called with the number of rows read.
    Raises TrainerError: BAD_DATASET when no format fits, when more rows than filters.maxBadRows are unusable or none is left;
    INVALID_CONFIGURATION when filters.minConfidence has no column to read.
    """
    tally = _Tally(name, dropped_rows)
    rows = iter(rows)
    head = list(itertools.islice(rows, min(LOOK_AT, spec.limit or LOOK_AT)))
    tally.columns = _columns(head)
    row_format = _format(name, head, spec, tally.columns)
    limited = itertools.islice(itertools.chain(head, rows), spec.limit)
    tokenizer.counts = Counts()
    pairs = _pairs(limited, row_format, spec.columns, data.filters.min_confidence, tally, progress)
    dataset = PairDataset.from_pairs(_kept(tokenizer.run(pairs), tally))
    _check(name, dataset, data, spec, tally)
    return Split(dataset, row_format, tally.rows, tally.by_reason, tokenizer.counts)


def _format(name: str, head: list[Any], spec: Dataset, columns: tuple[str, ...]) -> Format:
    if spec.format != "auto":
        return spec.format
    found = detect(head, spec.columns)
    if found is not None:
        return found
    if not columns:  # nothing decodable at the start: the rows are counted one by one, and the error says why
        return "pairs"
    wanted = spec.columns
    raise bad_dataset(
        f"{name}: the rows fit no format. Expected text or messages in columns {wanted.chosen} and {wanted.rejected}, with "
        f"{wanted.prompt or 'prompt'} (or instruction) beside them unless they are whole conversations; found "
        f"{_described(head, columns)}. Set columns, or format"
    )


def _described(head: list[Any], columns: tuple[str, ...]) -> str:
    """Columns with the kinds of their values in the first row, for a message."""
    first = next((row for row in head if isinstance(row, Mapping)), {})
    return ", ".join(f"{column} ({type(first.get(column)).__name__})" for column in columns[:20]) or "none"


def _columns(head: list[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(key)[:64] for row in head if isinstance(row, Mapping) for key in row))


def _pairs(
    rows: Iterator[Any],
    row_format: Format,
    columns: Columns,
    min_confidence: float | None,
    tally: _Tally,
    progress: Callable[[int], None],
) -> Iterator[tuple[int, Pair]]:
    for number, row in enumerate(rows):
        tally.rows = number + 1
        if number % 512 == 0:
            progress(number)
        if isinstance(row, Mapping) and row.get(columns.confidence) is not None:
            tally.has_confidence = True
        found = row if isinstance(row, Rejection) else normalize(row, row_format, columns, min_confidence)
        if isinstance(found, Rejection):
            tally.drop(number, found)
        else:
            yield number, found


def _kept(found: Iterable[tuple[int, TokenPair | Rejection]], tally: _Tally) -> Iterator[TokenPair]:
    for row, item in found:
        if isinstance(item, Rejection):
            tally.drop(row, item)
        else:
            yield item


def _check(name: str, dataset: PairDataset, data: Data, spec: Dataset, tally: _Tally) -> None:
    filters = data.filters
    if filters.min_confidence is not None and not tally.has_confidence and tally.rows:
        raise invalid_configuration(
            f"{name}: filters.minConfidence needs a number in column {spec.columns.confidence}, and no row has one; found columns "
            f"{', '.join(tally.columns[:20])}. Set columns.confidence, or leave minConfidence out"
        )
    if tally.bad > filters.max_bad_rows * tally.rows:
        raise _too_many_bad(name, filters.max_bad_rows, tally)
    if len(dataset) == 0:
        found = ", ".join(f"{reason} {count}" for reason, count in tally.by_reason.items()) or "no rows at all"
        raise bad_dataset(
            f"{name}: no usable pair in {tally.rows} rows ({found}); see data/dropped.jsonl in the work folder"
        )


def _too_many_bad(name: str, limit: float, tally: _Tally) -> TrainerError:
    assert tally.first_bad is not None
    row, rejection = tally.first_bad
    counts = ", ".join(f"{reason} {n}" for reason, n in tally.by_reason.items() if reason != Reason.LOW_CONFIDENCE)
    columns = ""
    if tally.dropped[Reason.MISSING_COLUMN] or tally.dropped[Reason.WRONG_TYPE]:
        columns = f" The columns found are {', '.join(tally.columns[:20]) or 'none'}."
    return bad_dataset(
        f"{name}: {tally.bad} of {tally.rows} rows ({tally.bad / tally.rows:.2%}) are unusable, and filters.maxBadRows allows "
        f"{limit:.2%}: {counts}. The first is row {row} (counting from 0), {rejection.reason}: {rejection.detail}.{columns} "
        "All are listed in data/dropped.jsonl in the work folder; repair them, or raise filters.maxBadRows"
    )
