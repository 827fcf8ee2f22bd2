"""Lines of a text file, and what is wrong with its bytes."""

import json
from collections.abc import Iterator
from typing import IO

from dpo_trainer.data.formats import Rejection
from dpo_trainer.data.formats.pairs import Reason

# A line that is longer is skipped, and counted as a bad row.
LONGEST_LINE = 64 * 2**20
BOM = b"\xef\xbb\xbf"


class OtherEncodingError(ValueError):
    """The file is text, but not in UTF-8. The message is the encoding's name."""


def check_encoding(begin: bytes, starts: tuple[str, ...] = ("{", "[", '"')) -> None:
    """Raise OtherEncodingError for UTF-16 and UTF-32. starts: what the text begins with when it is text at all."""
    encoding = json.detect_encoding(begin)
    if not encoding.startswith("utf-8") and begin[:8].decode(encoding, errors="ignore").startswith(starts):
        raise OtherEncodingError(encoding.upper())


def lines(file: IO[bytes]) -> Iterator[bytes | Rejection]:
    """Lines of a file with their ends, and a Rejection in the place of one that is too long."""
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) <= LONGEST_LINE:
            yield line
            continue
        size = len(line)
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)
            size += len(line)
        yield Rejection(Reason.ROW_TOO_BIG, f"a line of {size} bytes; rows of up to {LONGEST_LINE} are read")
