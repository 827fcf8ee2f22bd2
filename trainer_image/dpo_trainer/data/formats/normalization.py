"""One decoded row into a pair or a Rejection."""

from collections.abc import Mapping
from typing import Any

from dpo_operator.api.data import Columns
from dpo_trainer.data.formats.detection import looks_like
from dpo_trainer.data.formats.paired import read_paired, read_unpaired
from dpo_trainer.data.formats.pairs import Format, Pair, Reason, Rejection, Unusable
from dpo_trainer.data.formats.scored import read_scored
from dpo_trainer.data.formats.values import kind
from dpo_trainer.data.formats.votes import read_votes

_READERS = {"scored": read_scored, "votes": read_votes, "unpaired": read_unpaired}
# Reasons for which a row may have another format than the others.
_UNFIT = frozenset({Reason.MISSING_COLUMN, Reason.WRONG_TYPE})


def normalize(row: Any, row_format: Format, columns: Columns) -> Pair | Rejection:
    """Pair in a row, or why there is none.

    row: a decoded row; anything but a mapping is rejected.
    """
    if not isinstance(row, Mapping):
        return Rejection(Reason.NOT_AN_OBJECT, f"expected an object with columns, found {kind(row)}")
    try:
        read = _READERS.get(row_format)
        return read(row, columns) if read is not None else read_paired(row, columns, row_format)
    except Unusable as unusable:
        found = unusable.rejection
    if found.reason in _UNFIT and (shape := looks_like(row, columns)) not in (None, row_format):
        return Rejection(
            Reason.OTHER_FORMAT, f"the row looks like {shape}, and the data are read as {row_format}: {found.detail}"
        )
    return found
