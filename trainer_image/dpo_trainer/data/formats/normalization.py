"""Decoded rows into pairs or Rejections."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from dpo_operator.api.data import Columns
from dpo_trainer.data.formats.detection import looks_like
from dpo_trainer.data.formats.paired import read_paired, read_unpaired
from dpo_trainer.data.formats.pairs import ChatPair, Format, Pair, Reason, Rejection, Unusable
from dpo_trainer.data.formats.rated import Rated, best_and_worst, read_rated
from dpo_trainer.data.formats.scored import read_scored
from dpo_trainer.data.formats.values import kind
from dpo_trainer.data.formats.votes import read_votes

_READERS = {"scored": read_scored, "votes": read_votes, "unpaired": read_unpaired}
# Reasons for which a row may have another format than the others.
_UNFIT = frozenset({Reason.MISSING_COLUMN, Reason.WRONG_TYPE})
T = TypeVar("T")


def read_rows(
    rows: Iterable[tuple[int, Any]], row_format: Format, columns: Columns
) -> Iterator[tuple[int, Any, Pair | Rejection]]:
    """Number, row and what is in it, for each numbered row; of rated rows, once for those that make a pair together."""
    if row_format == "rated":
        yield from _grouped(rows, columns)
        return
    for number, row in rows:
        yield number, row, normalize(row, row_format, columns)


def normalize(row: Any, row_format: Format, columns: Columns) -> Pair | Rejection:
    """Pair in a row, or why there is none. A rated row has one answer, which is chosen here.

    row: a decoded row; anything but a mapping is rejected.
    """
    if row_format == "rated":
        rated = _rate(row, columns)
        return rated if isinstance(rated, Rejection) else rated.pair
    read = _READERS.get(row_format, lambda row, columns: read_paired(row, columns, row_format))
    return _read(read, row, row_format, columns)


def _rate(row: Any, columns: Columns) -> Rated | Rejection:
    return _read(read_rated, row, "rated", columns)


def _read(
    read: Callable[[Mapping[str, Any], Columns], T], row: Any, row_format: Format, columns: Columns
) -> T | Rejection:
    if not isinstance(row, Mapping):
        return Rejection(Reason.NOT_AN_OBJECT, f"expected an object with columns, found {kind(row)}")
    try:
        return read(row, columns)
    except Unusable as unusable:
        found = unusable.rejection
    if found.reason in _UNFIT and (shape := looks_like(row, columns)) not in (None, row_format):
        return Rejection(
            Reason.OTHER_FORMAT, f"the row looks like {shape}, and the data are read as {row_format}: {found.detail}"
        )
    return found


def _grouped(rows: Iterable[tuple[int, Any]], columns: Columns) -> Iterator[tuple[int, Any, Pair | Rejection]]:
    """Pairs of rated rows that follow each other and have one prompt."""
    group: list[tuple[int, Any, Rated]] = []
    seen: set[int] = set()
    for number, row in rows:
        rated = _rate(row, columns)
        if isinstance(rated, Rejection):
            yield number, row, rated
            continue
        if group and _asked(group[0][2].pair) == _asked(rated.pair):
            group.append((number, row, rated))
            continue
        if group:
            yield _of_group(group, seen)
        group = [(number, row, rated)]
    if group:
        yield _of_group(group, seen)


def _asked(pair: Pair) -> tuple[Any, ...]:
    return pair.prompt, pair.tools if isinstance(pair, ChatPair) else ()


def _of_group(group: list[tuple[int, Any, Rated]], seen: set[int]) -> tuple[int, Any, Pair | Rejection]:
    """The pair of a group. seen: hashes of what earlier groups were asked."""
    number, row, first = group[0]
    # Of its text, as tools and tool calls are objects, which have no hash.
    key = hash(repr(_asked(first.pair)))
    if key in seen:
        return (
            number,
            row,
            Rejection(
                Reason.SCATTERED_PROMPT, "earlier rows have this prompt, with others between; sort the rows by prompt"
            ),
        )
    seen.add(key)
    try:
        return number, row, best_and_worst([rated for _, _, rated in group])
    except Unusable as unusable:
        return number, row, unusable.rejection
