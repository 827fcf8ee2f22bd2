"""Rows of CSV and TSV files: the first line names the columns, and all cells are text."""

import csv
import itertools
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
    """Line, counting from 1, and row or Rejection; a row with wrong quotes or cells gives one for each of its lines. An empty cell is no value.

    separator: None takes the one of comma, semicolon and tab that the first line has most of.
    Raises TrainerError BAD_DATASET when the first line does not name the columns.
    """
    csv.field_size_limit(text.LONGEST_LINE)
    header_line = file.readline(text.LONGEST_LINE)
    if header_line.startswith(_UTF16):
        raise text.OtherEncodingError("UTF-16")
    first = header_line.removeprefix(text.BOM).decode(errors="surrogateescape")
    separator = separator or max(_SEPARATORS, key=first.count)
    lines = _Lines(first, file)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header = _header(reader, name)
    while True:
        line = lines.read + 1
        found: Any
        try:
            if (cells := next(reader, None)) is None:
                return
            if not cells:
                continue
            found = _row(header, cells)
        except _LineTooLongError as error:
            found = error.rejection
        except csv.Error as error:
            found = Rejection(Reason.MALFORMED_CSV, f"{error}; quote a cell that holds quotes, and write these twice")
        yield line, found
        if isinstance(found, Rejection) and found.reason != Reason.NOT_UTF8:
            # A quote that is never closed takes the rows that follow into its cell: each of their lines counts as a row that was lost.
            for number in range(line + 1, lines.read + 1):
                yield number, found


class _LineTooLongError(csv.Error):
    """A line that is not read. rejection: the same for the report."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.detail)
        self.rejection = rejection


class _Lines:
    """Lines of a file as text. read: how many were read.

    Raises _LineTooLongError instead of a line that is too long. The next call returns the next line, which a generator can't do after an error.
    """

    def __init__(self, first: str, file: IO[bytes]) -> None:
        self.read = 0
        self._lines = itertools.chain([first], text.lines(file))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.read += 1
        if isinstance(line, Rejection):
            raise _LineTooLongError(line)
        # Bytes that are no UTF-8 become halves of surrogate pairs, so that only their own row is refused.
        return line if isinstance(line, str) else line.decode(errors="surrogateescape")


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
