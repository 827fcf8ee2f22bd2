"""Compressed files, unpacked as a stream."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

from dpo_trainer.runtime.errors import bad_dataset, first_line

SUFFIXES = (".gz", ".zst")
# Bytes of a file that has to be read as a whole, unpacked; Python takes several times as much memory for it.
LARGEST_DOCUMENT = 2**30
# Of a packed one, this many times its packed size, and this much in any case: text packs to a fifth or a tenth.
UNPACKED_TIMES, UNPACKED = 100, 2**26


def plain_name(name: str) -> str:
    """Name of a file without the ending that says how it is packed."""
    return name.removesuffix(".gz").removesuffix(".zst")


def largest_document(name: str, size: int) -> int:
    """Bytes, unpacked, up to which a file is read as a whole. size: its own bytes."""
    return LARGEST_DOCUMENT if plain_name(name) == name else min(LARGEST_DOCUMENT, max(UNPACKED, UNPACKED_TIMES * size))


@contextmanager
def unpacked(raw: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    """The content of a file. Errors of a packed one are raised as TrainerError BAD_DATASET, wherever it is read."""
    try:
        yield _opened(raw, name)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise bad_dataset(f"{name}: the gzip file is damaged or cut short ({error}); copy it again") from error
    except OSError as error:
        # Arrow's errors come from no system call; others are those of the file or the store.
        if not name.endswith(".zst") or error.errno is not None:
            raise
        raise bad_dataset(
            f"{name}: the zstd file is damaged or cut short ({first_line(error, 200)}); copy it again"
        ) from error


def _opened(raw: IO[bytes], name: str) -> IO[bytes]:
    if name.endswith(".gz"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))  # typeshed does not derive GzipFile from IO
    if name.endswith(".zst"):
        import pyarrow as arrow

        return io.BufferedReader(arrow.CompressedInputStream(raw, "zstd"))
    return raw
