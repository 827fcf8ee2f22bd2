"""Rows of CSV and TSV files: the first line names the columns, and all cells are text."""

import csv
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from dpo_trainer.data.decoding import lines as text
from dpo_trainer.data.formats import Rejection
from dpo_trainer.data.formats.pairs import Reason
from dpo_trainer.runtime.errors import bad_dataset

_SEPARATORS = (",", ";", "\t")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_separated(file: IO[bytes], name: str, separator: str | None) -> Iterator[tuple[int, Any]]:
    """Line, counting from 1, and row or Rejection. An empty cell is no value.

    separator: None takes the one of comma, semicolon and tab that the first line has most of.
    Raises TrainerError BAD_DATASET when the first line does not name the columns.
    """
    csv.field_size_limit(text.LONGEST_LINE)
    header_line = file.readline(text.LONGEST_LINE)
    if header_line.startswith(_UTF16):
        raise text.OtherEncodingError("UTF-16")
    first = header_line.removeprefix(text.BOM).decode(errors="surrogateescape")
    separator = separator or max(_SEPARATORS, key=first.count)
    reader = csv.reader(_chained(first, file), delimiter=separator, strict=True)
    header = _header(reader, name)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield (
                line,
                Rejection(Reason.MALFORMED_CSV, f"{error}; quote a cell that holds quotes, and write these twice"),
            )
            continue
        if cells is None:
            return
        if cells:
            yield line, _row(header, cells)


def _chained(first: str, file: IO[bytes]) -> Iterator[str]:
    yield first
    for line in text.lines(file):
        if isinstance(line, Rejection):
            raise csv.Error(line.detail)
        # Bytes that are no UTF-8 become halves of surrogate pairs, so that only their own row is refused.
        yield line.decode(errors="surrogateescape")


def _header(reader: Iterator[list[str]], name: str) -> list[str]:
    try:
        header = [cell.strip() for cell in next(reader, [])]
    except csv.Error as error:
        raise bad_dataset(f"{name}: expected the names of the columns in the first line, found: {error}") from error
    twice = [column for column, count in Counter(header).items() if count > 1]
    if twice:
        raise bad_dataset(
            f"{name}: expected the names of the columns in the first line, each once; found {twice[0][:64]!r} twice"
        )
    return header


def _row(header: list[str], cells: list[str]) -> Any:
    if len(cells) != len(header):
        return Rejection(Reason.MALFORMED_CSV, f"{len(cells)} cells, and the first line names {len(header)} columns")
    for column, cell in zip(header, cells, strict=True):
        if any("\udc80" <= character <= "\udcff" for character in cell):
            return Rejection(Reason.NOT_UTF8, f"column {column[:64]} is not UTF-8")
    return {column: cell or None for column, cell in zip(header, cells, strict=True)}
