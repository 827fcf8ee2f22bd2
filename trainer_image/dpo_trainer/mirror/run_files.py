"""The run's figures, sample answers, diagnosis and lists of selected pairs beside its checkpoints in the mirror: a run that is restored knows how it began."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from dpo_trainer.batches import rankings
from dpo_trainer.checkpoint.plain_files import read_plain
from dpo_trainer.diagnosis.history import Diagnosis
from dpo_trainer.mirror.place import Place
from dpo_trainer.runtime.files import commit
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.metrics_file import parse_lines

# A larger file stays on the volume alone; metrics.jsonl of 100,000 steps is about as large.
MOST_BYTES = 256 << 20
# Folder of the lists of selected pairs in the mirror.
_SELECTION = "selection/"


def save(place: Place, work: WorkDir, progress: Callable[[str], None]) -> None:
    """Copy them as they are now. One that can't be read is reported and left out: no checkpoint depends on it. Raises TrainerError of the store."""
    for path in files(work):
        try:
            content = read_plain(path, limit=MOST_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            progress(f"{path.name} is not copied to the mirror: {error.strerror}")
            continue
        place.folder.write(path.name, content)
    _save_selection(place, work, progress)


def _save_selection(place: Place, work: WorkDir, progress: Callable[[str], None]) -> None:
    """Copy the lists of selected pairs that the mirror lacks. They don't change, and later steps can't be trained without them."""
    paths = lists(work)
    there = place.folder.there() if paths else {}
    for path in paths:
        try:
            content = read_plain(path, limit=rankings.MOST_BYTES)
        except OSError as error:
            progress(f"{path.name} is not copied to the mirror: {error.strerror}")
            continue
        name, digest = _SELECTION + path.name, hashlib.sha256(content).hexdigest()
        if not place.folder.holds(there, name, len(content), digest):
            place.folder.write(name, content, digest)


def restore(place: Place, work: WorkDir, step: int, progress: Callable[[str, float], None]) -> None:
    """Fetch those that the volume lacks, without what was written after the step that the run resumes from. Raises TrainerError of the store, OSError."""
    there = place.look()
    for path in files(work):
        found = there.get(path.name)
        if found is None or not found.size or path.exists():
            continue
        if found.size > MOST_BYTES:
            progress(
                f"{path.name} of the mirror is not fetched: expected at most {MOST_BYTES} bytes, found {found.size}",
                1.0,
            )
            continue
        content = place.folder.store.part(found, 0, found.size, place.folder.label(path.name))
        put(work, path, content, step)
    for name, found in there.items():
        path = work.selection / name.removeprefix(_SELECTION)
        if name != _SELECTION + path.name or not rankings.FILE.fullmatch(path.name) or path.exists():
            continue
        if 0 < found.size <= rankings.MOST_BYTES:
            put_list(work, path.name, place.folder.store.part(found, 0, found.size, place.folder.label(name)))


def files(work: WorkDir) -> tuple[Path, Path, Path]:
    """Where they are in a work folder."""
    return work.metrics, work.samples, work.diagnosis


def put(work: WorkDir, path: Path, content: bytes, step: int) -> None:
    """Write one of `files`, without what was written after a step. Raises OSError."""
    commit(path, content if path == work.diagnosis else _cut(content, step))
    if path == work.diagnosis:
        Diagnosis.read(work).cut(step).write(work)


def lists(work: WorkDir) -> list[Path]:
    """Files of the lists of selected pairs."""
    found = sorted(work.selection.iterdir()) if work.selection.is_dir() else []
    return [path for path in found if rankings.FILE.fullmatch(path.name)]


def put_list(work: WorkDir, name: str, content: bytes) -> None:
    """Write one of `lists`. Raises OSError."""
    work.selection.mkdir(parents=True, exist_ok=True)
    commit(work.selection / name, content)


def _cut(content: bytes, step: int) -> bytes:
    """The whole lines of steps up to this one."""
    lines = content.decode("utf-8", errors="replace").splitlines()
    return "".join(f"{raw}\n" for raw in lines if any(line["step"] <= step for line in parse_lines(raw))).encode()
