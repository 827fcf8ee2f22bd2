"""Rows of data files, read as a stream.

A row that can't be decoded is yielded as a Rejection in its place, so that it is counted like any other bad row. Rows
are numbered from 0 over all files of a source; blank lines are no rows. Memory is bounded by the largest row, and by the size of a
JSON file that has to be read as a whole.
"""

import bisect
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.data.decoding import EXPECTED, SUFFIXES, decode, has_lines
from dpo_trainer.runtime.errors import input_not_found, invalid_configuration
from dpo_trainer.runtime.untrusted import Untrusted
from dpo_trainer.sources.kinds import FileSource

# What to do about files that are not read, by suffix.
_ADVICE = {
    (".xlsx", ".xls"): "Tables of Excel are not read; save them as .csv",
    (".zip", ".tar", ".tgz", ".tar.gz", ".bz2", ".xz"): "Of packed files, .gz and .zst are read; unpack others",
}
# Files that `datasets` writes beside the data, and of a folder of several splits.
_METADATA_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_OF_SPLITS = "dataset_dict.json"
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

    split: the one that is read of a folder or file of several, as save_to_disk of datasets writes them.
    progress: called every 512 rows with the share of bytes that were read.
    Raises TrainerError: INPUT_NOT_FOUND when there is no data file, INVALID_CONFIGURATION when a folder mixes splits,
    BAD_DATASET when a file is damaged as a whole.
    """

    def __init__(
        self, source: FileSource, progress: Callable[[float], None] = lambda _: None, split: str = "train"
    ) -> None:
        self._source = source
        self._split = split
        self._progress = progress
        # (row, file, line) wherever the line number is not the previous one plus 1: at each file and after blank lines. Lines count from 1.
        self._marks: list[tuple[int, str, int]] = []

    def __iter__(self) -> Iterator[Any]:
        """Decoded rows and Rejections."""
        names, sizes = data_files(self._source, self._split), self._source.sizes
        total = max(1, sum(sizes[name] for name in names))
        done = row = 0
        self._marks = []
        for name in names:
            expected = 0
            with self._source.open(name) as raw:
                items = decode(raw, name, sizes[name], self._split)
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
        return f"{name} {'line' if has_lines(name) else 'row'} {place + row - first}"


def data_files(source: FileSource, split: str = "train") -> list[str]:
    """Names of the files that will be read, sorted. split: the one that is read of a folder of several.

    Of a folder's, hidden ones (with a part that starts with . or _) and those that only describe the data are left out.
    """
    if source.is_file:
        names = [name for name in source.sizes if name.endswith(SUFFIXES)]
    else:
        names = sorted(name for name in source.sizes if name.endswith(SUFFIXES) and not _is_hidden(name))
        names = _of_split(source, names, split)
    if not names:
        found = ", ".join(sorted(source.sizes)[:8]) or "nothing"
        hints = (hint for ends, hint in _ADVICE.items() if any(name.lower().endswith(ends) for name in source.sizes))
        advice = "".join(f". {hint}" for hint in hints)
        raise input_not_found(f"{source.label}: expected {EXPECTED}, found {found}{advice}")
    splits = {word: name for name in names if (word := _split_of(name)) is not None}
    if len(splits) > 1:
        raise invalid_configuration(
            f"{source.label}: the folder holds files of different splits ({' and '.join(sorted(splits.values()))}), which "
            "would be read as one; name the file, or a folder that holds one split"
        )
    return names


def _of_split(source: FileSource, names: list[str], split: str) -> list[str]:
    """The files of one split of a folder that save_to_disk of datasets wrote; all of another folder."""
    if _OF_SPLITS not in source.sizes:
        return names
    splits = sorted({name.split("/")[0] for name in names if "/" in name})
    if split not in splits:
        raise input_not_found(
            f"{source.label}: a folder of the splits {', '.join(splits)}, and no split {split}; set split"
        )
    return [name for name in names if name.startswith(f"{split}/")]


def _is_hidden(name: str) -> bool:
    parts = name.split("/")
    # `map` of datasets leaves its results beside the data.
    if parts[-1].startswith("cache-") and parts[-1].endswith(".arrow"):
        return True
    return parts[-1] in _METADATA_FILES or any(part.startswith((".", "_")) for part in parts)


def _split_of(name: str) -> str | None:
    words = name.lower().replace("/", "-").replace("_", "-").replace(".", "-").split("-")
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)
