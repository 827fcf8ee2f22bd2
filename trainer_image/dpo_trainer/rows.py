"""Rows of JSON Lines, JSON and Parquet files, read as a stream.

A row that can't be decoded is yielded as a Rejection in its place, so that it is counted like any other bad row. Rows
are numbered from 0 over all files of a source; blank lines of JSON Lines are no rows.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from dpo_trainer.errors import bad_dataset, input_not_found, invalid_configuration
from dpo_trainer.formats import Reason, Rejection
from dpo_trainer.sources import FileSource

SUFFIXES = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")

_BOM = b"\xef\xbb\xbf"
# Files of a folder whose names say that they belong to different splits are never read as one.
_SPLIT_WORDS = {
    "train": "train", "training": "train",
    "test": "test", "eval": "test", "evaluation": "test",
    "validation": "test", "valid": "test", "val": "test", "dev": "test",
}  # fmt: skip


def read(source: FileSource, progress: Callable[[float], None] = lambda _: None) -> Iterator[Any]:
    """Decoded rows and Rejections of a file, or of a folder's files sorted by name.

    progress: called now and then with the share of bytes that were read.
    Raises TrainerError: INPUT_NOT_FOUND when there is no data file, INVALID_CONFIGURATION when a folder mixes splits,
    BAD_DATASET when a file is damaged as a whole.
    """
    names = data_files(source)
    total = max(1, sum(source.sizes[name] for name in names))
    done = 0
    for name in names:
        with source.open(name) as raw:
            for number, row in enumerate(_read_file(raw, name)):
                if number % 512 == 0:
                    progress(min(1.0, (done + raw.tell()) / total))
                yield row
        done += source.sizes[name]


def data_files(source: FileSource) -> list[str]:
    """Names of the files that will be read, sorted; hidden ones (with a part that starts with . or _) are left out."""
    if source.is_file:
        names = [name for name in source.sizes if name.endswith(SUFFIXES)]
    else:
        names = sorted(name for name in source.sizes if name.endswith(SUFFIXES) and not _is_hidden(name))
    if not names:
        found = ", ".join(sorted(source.sizes)[:8]) or "nothing"
        raise input_not_found(f"{source.label}: expected {', '.join(SUFFIXES)} files, found {found}")
    splits = {split: name for name in names if (split := _split_of(name)) is not None}
    if len(splits) > 1:
        raise invalid_configuration(
            f"{source.label}: the folder holds files of different splits ({' and '.join(sorted(splits.values()))}), which "
            "would be read as one; name the file, or a folder that holds one split"
        )
    return names


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/"))


def _split_of(name: str) -> str | None:
    words = name.lower().replace("/", "-").replace("_", "-").replace(".", "-").split("-")
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)


def _read_file(raw: IO[bytes], name: str) -> Iterator[Any]:
    try:
        if name.endswith(".parquet"):
            yield from _read_parquet(raw, name)
            return
        file: IO[bytes] = gzip.GzipFile(fileobj=raw) if name.endswith(".gz") else raw  # type: ignore[assignment]
        whole = name.removesuffix(".gz").endswith(".json")
        yield from (_read_json(file, name) if whole else _read_lines(file, name))
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise bad_dataset(f"{name}: the gzip file is damaged or cut short ({error}); copy it again") from error


def _read_parquet(file: IO[bytes], name: str) -> Iterator[Any]:
    import pyarrow as arrow
    import pyarrow.parquet

    try:
        for batch in arrow.parquet.ParquetFile(file).iter_batches(batch_size=512):
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:
                rows = [_parquet_row(batch, i) for i in range(batch.num_rows)]
            yield from rows
    except arrow.ArrowException as error:
        raise bad_dataset(f"{name}: expected a Parquet file, found: {_one_line(error)}; write it again") from error


def _parquet_row(batch: Any, index: int) -> Any:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return Rejection(Reason.NOT_UTF8, f"byte {error.start} of a column is not UTF-8")


def _read_lines(file: IO[bytes], name: str, first: bytes = b"") -> Iterator[Any]:
    """JSON Lines: one value on each line, lines end with a newline byte and nothing else.

    first: bytes of the first line that were read already.
    """
    for number, line in enumerate(_lines(file, first), start=1):
        if number == 1:
            line = line.removeprefix(_BOM)
        if line.strip():
            yield _decode(line, f"{name} line {number}")


def _lines(file: IO[bytes], first: bytes) -> Iterator[bytes]:
    if first:
        yield first
    yield from file


def _decode(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Rejection(Reason.NOT_UTF8, f"{where}: byte {error.start} is not UTF-8")
    except json.JSONDecodeError as error:
        return Rejection(Reason.MALFORMED_JSON, f"{where}: {error.msg} at character {error.pos}")
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; nesting without end
        return Rejection(Reason.MALFORMED_JSON, f"{where}: {_one_line(error)}")


def _read_json(file: IO[bytes], name: str) -> Iterator[Any]:
    """A .json file: a list of objects, which is read at once, or JSON Lines under another name."""
    first = next((line for line in file if line.removeprefix(_BOM).strip()), b"")
    start = first.removeprefix(_BOM).lstrip()
    if start.startswith(b"["):
        yield from _whole_document(first + file.read(), name)
    elif _parses(start):
        yield from _read_lines(file, name, first)
    else:
        text = first + file.read()
        if _parses(text.removeprefix(_BOM)):
            raise bad_dataset(f"{name}: expected a list of objects or JSON Lines, found one object over several lines")
        yield from _read_lines(io.BytesIO(text), name)


def _parses(text: bytes) -> bool:
    try:
        json.loads(text.decode())
    except (ValueError, RecursionError):
        return False
    return True


def _whole_document(text: bytes, name: str) -> Any:
    try:
        return json.loads(text.removeprefix(_BOM).decode())
    except (ValueError, RecursionError) as error:
        raise bad_dataset(
            f"{name}: expected JSON in UTF-8, found: {_one_line(error)}; as .jsonl, with one object on each line, only "
            "the damaged rows would be lost"
        ) from error


def _one_line(error: BaseException) -> str:
    """First line of an error's message, short enough for a report."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
