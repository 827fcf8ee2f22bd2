"""Bytes of a data file into rows: JSON, CSV, Parquet and Arrow, packed or not."""

from collections.abc import Iterator
from typing import IO, Any

from dpo_trainer.data.decoding import packed
from dpo_trainer.data.decoding.jsonrows import read_json
from dpo_trainer.data.decoding.lines import OtherEncodingError
from dpo_trainer.data.decoding.separated import read_separated
from dpo_trainer.data.decoding.tables import read_arrow, read_parquet
from dpo_trainer.runtime.errors import bad_dataset

_LINES = (".jsonl", ".ndjson", ".jsonlines")
_SEPARATED = {".csv": None, ".tsv": "\t"}
_TEXTS = (*_LINES, ".json", *_SEPARATED)
_TABLES = {".parquet": read_parquet, ".arrow": read_arrow}
SUFFIXES = (*_TEXTS, *_TABLES, *(text + end for text in _TEXTS for end in packed.SUFFIXES))
# The same, for messages.
EXPECTED = f"{', '.join((*_TEXTS, *_TABLES))} files, text also packed as {' or '.join(packed.SUFFIXES)}"


def decode(raw: IO[bytes], name: str, size: int, split: str) -> Iterator[tuple[int, Any]]:
    """Place in the file, counting from 1, and row or Rejection. The place is the line in files of lines, else the row's number.

    size: bytes of the file. split: the one that is read of a file that holds several.
    Raises TrainerError BAD_DATASET when the file is damaged as a whole.
    """
    for end, read in _TABLES.items():
        if name.endswith(end):
            yield from enumerate(read(raw, name), start=1)
            return
    try:
        with packed.unpacked(raw, name) as file:
            yield from _decode_text(file, name, size, split)
    except OtherEncodingError as error:
        raise bad_dataset(f"{name}: expected text in UTF-8, found {error}; write it as UTF-8") from error


def _decode_text(file: IO[bytes], name: str, size: int, split: str) -> Iterator[tuple[int, Any]]:
    plain = packed.plain_name(name)
    for end, separator in _SEPARATED.items():
        if plain.endswith(end):
            yield from read_separated(file, name, separator)
            return
    yield from read_json(file, name, packed.largest_document(name, size), split, whole=plain.endswith(".json"))


def has_lines(name: str) -> bool:
    """Whether places in a file are lines."""
    return packed.plain_name(name).endswith((*_LINES, *_SEPARATED))
