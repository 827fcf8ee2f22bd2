"""Rows of JSON Lines, JSON and Parquet files, read as a stream.

A row that can't be decoded is yielded as a Rejection in its place, so that it is counted like any other bad row. Rows
are numbered from 0 over all files of a source; blank lines of JSON Lines are no rows. Memory is bounded by the largest
row, and by the size of a .json file that holds one list.
"""

import bisect
import gzip
import io
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Protocol, cast

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.data.formats import Rejection
from dpo_trainer.data.formats.pairs import Reason
from dpo_trainer.runtime.errors import TrainerError, bad_dataset, first_line, input_not_found, invalid_configuration
from dpo_trainer.runtime.untrusted import Untrusted
from dpo_trainer.sources.kinds import FileSource

SUFFIXES = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")

# A line that is longer is skipped, and counted as a bad row.
LONGEST_LINE = 64 * 2**20
# Bytes of a .json file that is one document, unpacked; Python takes several times as much memory for it.
LARGEST_DOCUMENT = 2**30
# Of a packed one, this many times its packed size, and this much in any case: text packs to a fifth or a tenth.
UNPACKED_TIMES, UNPACKED = 100, 2**26
# Bytes of Parquet rows that are decoded at once.
PARQUET_BATCH = 32 * 2**20

_BOM = b"\xef\xbb\xbf"
# What to do about files that are not read, by suffix.
_ADVICE = {
    (
        ".csv",
        ".tsv",
        ".csv.gz",
        ".tsv.gz",
        ".xlsx",
    ): "CSV and tables like it are not read, because they have no types; write them as .jsonl or .parquet",
    (".arrow",): "Arrow files, as save_to_disk of datasets writes them, are not read; write them with to_parquet",
    (".ndjson", ".jsonlines"): "Name JSON Lines .jsonl",
    (
        ".zst",
        ".bz2",
        ".xz",
        ".zip",
        ".tar",
        ".tgz",
        ".tar.gz",
    ): "Of compressed files, .jsonl.gz and .json.gz are read; unpack others",
}
# Files that `datasets` writes beside the data.
_METADATA_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
# Files of a folder whose names say that they belong to different splits are never read as one.
_SPLIT_WORDS = {
    "train": "train", "training": "train",
    "test": "test", "eval": "test", "evaluation": "test",
    "validation": "test", "valid": "test", "val": "test", "dev": "test", "heldout": "test", "holdout": "test",
}  # fmt: skip


class Rows(Protocol):
    """Rows of a source, in order."""

    def __iter__(self) -> Iterator[Any]:
        """Decoded rows, and Rejections in the place of those that can't be decoded."""

    def where(self, row: int) -> str:
        """Where a row that was read stands, for messages."""


class FileRows:
    """Rows of a file, or of a folder's files sorted by name.

    progress: called every 512 rows with the share of bytes that were read.
    Raises TrainerError: INPUT_NOT_FOUND when there is no data file, INVALID_CONFIGURATION when a folder mixes splits,
    BAD_DATASET when a file is damaged as a whole.
    """

    def __init__(self, source: FileSource, progress: Callable[[float], None] = lambda _: None) -> None:
        self._source = source
        self._progress = progress
        # (row, file, line) wherever the line number is not the previous one plus 1: at each file and after blank lines. Lines count from 1.
        self._marks: list[tuple[int, str, int]] = []

    def __iter__(self) -> Iterator[Any]:
        """Decoded rows and Rejections."""
        names, sizes = data_files(self._source), self._source.sizes
        total = max(1, sum(sizes[name] for name in names))
        done = row = 0
        self._marks = []
        for name in names:
            expected = 0
            with self._source.open(name) as raw:
                items = _read_file(raw, name, sizes[name])
                while True:
                    with Untrusted(f"reading row {row} of {self._source.label}", code=ExitCode.SOURCE_UNAVAILABLE):
                        found = next(items, None)
                    if found is None:
                        break
                    place, item = found
                    if place != expected:
                        self._marks.append((row, name, place))
                    if (row % 512) == 0:
                        self._progress(min(1.0, (done + raw.tell()) / total))
                        if raw.tell() > sizes[name]:
                            raise self._source.changed(name, "grows while it is read")
                    expected, row = place + 1, row + 1
                    yield item
            done += sizes[name]

    def where(self, row: int) -> str:
        """File of a row that was read, and its line or its place in the file, counting from 1."""
        first, name, place = self._marks[bisect.bisect_right(self._marks, row, key=lambda mark: mark[0]) - 1]
        lines = name.removesuffix(".gz").endswith(".jsonl")
        return f"{name} {'line' if lines else 'row'} {place + row - first}"


def data_files(source: FileSource) -> list[str]:
    """Names of the files that will be read, sorted.

    Of a folder's, hidden ones (with a part that starts with . or _) and those that only describe the data are left out.
    """
    if source.is_file:
        names = [name for name in source.sizes if name.endswith(SUFFIXES)]
    else:
        names = sorted(name for name in source.sizes if name.endswith(SUFFIXES) and not _is_hidden(name))
    if not names:
        found = ", ".join(sorted(source.sizes)[:8]) or "nothing"
        hints = (hint for ends, hint in _ADVICE.items() if any(name.lower().endswith(ends) for name in source.sizes))
        advice = "".join(f". {hint}" for hint in hints)
        raise input_not_found(f"{source.label}: expected {', '.join(SUFFIXES)} files, found {found}{advice}")
    splits = {split: name for name in names if (split := _split_of(name)) is not None}
    if len(splits) > 1:
        raise invalid_configuration(
            f"{source.label}: the folder holds files of different splits ({' and '.join(sorted(splits.values()))}), which "
            "would be read as one; name the file, or a folder that holds one split"
        )
    return names


def _is_hidden(name: str) -> bool:
    parts = name.split("/")
    return parts[-1] in _METADATA_FILES or any(part.startswith((".", "_")) for part in parts)


def _split_of(name: str) -> str | None:
    words = name.lower().replace("/", "-").replace("_", "-").replace(".", "-").split("-")
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)


def _read_file(raw: IO[bytes], name: str, size: int) -> Iterator[tuple[int, Any]]:
    """Place in the file, counting from 1 (the line, of JSON Lines), and row or Rejection."""
    try:
        if name.endswith(".parquet"):
            yield from enumerate(_read_parquet(raw, name), start=1)
            return
        # typeshed does not derive GzipFile from IO.
        file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if name.endswith(".gz") else raw
        whole = name.removesuffix(".gz").endswith(".json")
        most = LARGEST_DOCUMENT
        if name.endswith(".gz"):
            most = min(most, max(UNPACKED, UNPACKED_TIMES * size))
        yield from (_read_json(file, name, most) if whole else _read_lines(_lines(file)))
    except _OtherEncoding as error:
        raise bad_dataset(f"{name}: expected text in UTF-8, found {error}; write it as UTF-8") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise bad_dataset(f"{name}: the gzip file is damaged or cut short ({error}); copy it again") from error


def _read_parquet(file: IO[bytes], name: str) -> Iterator[Any]:
    import pyarrow as arrow
    import pyarrow.parquet

    try:
        table = arrow.parquet.ParquetFile(file)
        twice = [name for name, count in Counter(table.schema_arrow.names).items() if count > 1]
        if twice:
            raise bad_dataset(f"{name}: column {twice[0][:64]} is there twice; leave one of them out")
        groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
        largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=1)
        for batch in table.iter_batches(batch_size=min(512, max(1, PARQUET_BATCH // max(1, largest)))):
            try:
                rows = batch.to_pylist(maps_as_pydicts="lossy")
            except (ValueError, OverflowError):
                rows = [_parquet_row(batch, i) for i in range(batch.num_rows)]
            yield from rows
    except MemoryError:
        raise
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
        # What Arrow can't decode may be an OSError too, of no system call; others are those of the file or the store. The names of
        # the columns may be no text.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise bad_dataset(f"{name}: expected a Parquet file, found: {_reason(error)}; write it again") from error


def _parquet_row(batch: Any, index: int) -> Any:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py(maps_as_pydicts="lossy")
        except UnicodeDecodeError as error:
            return Rejection(Reason.NOT_UTF8, f"byte {error.start} of column {name[:64]} is not UTF-8")
        except (ValueError, OverflowError):  # a time that Python can't hold; no column that is read has times
            row[name] = None
    return row


def _read_lines(lines: Iterable[bytes | Rejection]) -> Iterator[tuple[int, Any]]:
    """JSON Lines: one value on each line, lines end with a newline byte and nothing else."""
    for number, line in enumerate(lines, start=1):
        if isinstance(line, Rejection):
            yield number, line
            continue
        if number == 1:
            _check_encoding(line)
            line = line.removeprefix(_BOM)
        if line.strip():
            yield number, _decode(line)


class _OtherEncoding(ValueError):
    """The file is text, but not in UTF-8. The message is the encoding's name."""


def _check_encoding(begin: bytes) -> None:
    encoding = json.detect_encoding(begin)
    if not encoding.startswith("utf-8") and begin[:8].decode(encoding, errors="ignore").startswith(("{", "[", '"')):
        raise _OtherEncoding(encoding.upper())


def _lines(file: IO[bytes]) -> Iterator[bytes | Rejection]:
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) <= LONGEST_LINE:
            yield line
            continue
        size = len(line)
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)
            size += len(line)
        yield Rejection(Reason.ROW_TOO_BIG, f"a line of {size} bytes; rows of up to {LONGEST_LINE} are read")


def _decode(line: bytes) -> Any:
    try:
        return _JSON.decode(line.decode())
    except UnicodeDecodeError as error:
        return Rejection(Reason.NOT_UTF8, f"byte {error.start} is not UTF-8")
    except json.JSONDecodeError as error:
        return Rejection(Reason.MALFORMED_JSON, f"{error.msg} at character {error.pos}")
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; nesting without end
        return Rejection(Reason.MALFORMED_JSON, _reason(error))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Of two values for one key, Python would silently take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"an object has the key {twice[:64]} twice")
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_object)


def _read_json(file: IO[bytes], name: str, most: int) -> Iterator[tuple[int, Any]]:
    """A .json file: a list of objects, which is read at once, or JSON Lines under another name."""
    begin = bytearray()
    while line := file.readline(LONGEST_LINE):
        begin += line
        if (line if len(begin) > len(line) else line.removeprefix(_BOM)).strip():
            break
        if len(begin) > most:
            raise _too_large(name, most)
    head = bytes(begin)
    _check_encoding(head)
    start = head.removeprefix(_BOM).lstrip()
    if start.startswith(b"["):
        yield from enumerate(_whole_document(head + _rest(file, name, most), name), start=1)
    elif _parsed(start) is not None:
        yield from _read_lines(itertools.chain(_lines(io.BytesIO(head)), _lines(file)))
    else:
        text = head + _rest(file, name, most)
        if isinstance(found := _parsed(text.removeprefix(_BOM)), dict):
            keys = ", ".join(str(key)[:64] for key in list(found)[:8]) or "no columns"
            raise bad_dataset(
                f"{name}: expected a list of objects or JSON Lines, found one object over several lines, with {keys}; write "
                "the list of rows itself, or one row on each line"
            )
        yield from _read_lines(_lines(io.BytesIO(text)))


def _rest(file: IO[bytes], name: str, most: int) -> bytes:
    text = file.read(most + 1)
    if len(text) > most:
        raise _too_large(name, most)
    return text


def _too_large(name: str, most: int) -> TrainerError:
    return bad_dataset(
        f"{name}: expected at most {most} bytes, unpacked, in a file that has to be read as a whole, found more; write it as .jsonl, with "
        "one object on each line"
    )


def _parsed(text: bytes) -> Any:
    """Value of a JSON text; None when it is none."""
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError):
        return None


def _whole_document(text: bytes, name: str) -> Any:
    try:
        return _JSON.decode(text.removeprefix(_BOM).decode())
    except (ValueError, RecursionError) as error:
        raise bad_dataset(
            f"{name}: expected JSON in UTF-8, found: {_reason(error)}; as .jsonl, with one object on each line, only "
            "the damaged rows would be lost"
        ) from error


def _reason(error: BaseException) -> str:
    return first_line(error, 200) or type(error).__name__
