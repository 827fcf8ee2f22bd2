"""Downloads from object stores: in parts, several at a time, resumed where they were interrupted, and whole or not there.

A file appears under its name when all of its parts are on the disk and the store still has the same object. Until then it is a hidden file, with a
list of its finished parts beside it.
"""

import json
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from dpo_trainer.runtime.files import sync_folder
from dpo_trainer.sources.store_answers import changed
from dpo_trainer.sources.stores import Store, Stored

PART = 16 << 20
PARALLEL = 8


def download(store: Store, found: Stored, target: Path, label: str, progress: Callable[[float], None]) -> None:
    """Download one object into a file. progress: called with the finished share, 0 to 1.

    A file that is there already is replaced. Raises TrainerError: SOURCE_UNAVAILABLE when the object changes meanwhile or the store gives no answer,
    and what store_answers.explain says; OSError of the disk.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, parts = (target.with_name(f".{target.name}.{suffix}") for suffix in ("partial", "parts"))
    head = json.dumps(asdict(found) | {"part": PART}) + "\n"
    count = -(-found.size // PART)
    # Without an ETag, nothing says that an earlier download was of the same object.
    done = _finished(parts, head) if found.etag is not None and partial.is_file() else set()
    with parts.open("a" if done else "w", encoding="utf-8") as notes:
        if not done:
            notes.write(head)
            _create(partial, found.size)
        missing = [number for number in range(count) if number not in done]
        for number in _fetch(store, found, missing, partial, label):
            notes.write(f"{number}\n")
            notes.flush()
            done.add(number)
            progress(len(done) / count)
    if store.head(found.key, label) != found:
        parts.unlink()
        raise changed(label)
    partial.replace(target)
    parts.unlink()
    sync_folder(target.parent)


def _finished(parts: Path, head: str) -> set[int]:
    """Numbers of the parts that an earlier download of the same object finished."""
    try:
        first, *lines = parts.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, ValueError):
        return set()
    # A line without its end was cut off by a crash.
    return {int(line) for line in lines if line.endswith("\n") and line.strip().isdecimal()} if first == head else set()


def _create(path: Path, size: int) -> None:
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        file.truncate(size)


def _fetch(store: Store, found: Stored, numbers: Iterable[int], partial: Path, label: str) -> Iterable[int]:
    """Fetch parts into their places; yields their numbers when they are on the disk."""
    stop = threading.Event()

    def one(number: int) -> None:
        if stop.is_set():
            return
        start = number * PART
        content = store.part(found, start, min(start + PART, found.size), label)
        # A descriptor of its own: after an error the others may still write while the phase ends.
        with partial.open("r+b", buffering=0) as file:
            file.seek(start)
            left = memoryview(content)
            while left:
                left = left[file.write(left) :]
            os.fdatasync(file.fileno())

    pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="download")
    try:
        tasks = {pool.submit(one, number): number for number in numbers}
        for task in as_completed(tasks):
            task.result()
            yield tasks[task]
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
