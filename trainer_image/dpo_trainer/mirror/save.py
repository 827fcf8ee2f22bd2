"""Copies committed checkpoints from the volume to the mirror. A copy that was killed continues where it stopped."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dpo_operator.api.reports import CheckpointRef
from dpo_operator.api.training import Checkpoint
from dpo_trainer.checkpoint.layout import committed, folder_name
from dpo_trainer.checkpoint.manifest import MANIFEST, Manifest, parse_manifest, read_content, reference
from dpo_trainer.checkpoint.plain_files import BadCheckpoint, open_plain
from dpo_trainer.checkpoint.trust import Trust
from dpo_trainer.checkpoint.verification import retained
from dpo_trainer.mirror.place import Place, files_of, steps, whole
from dpo_trainer.runtime.errors import input_not_found, volume_error
from dpo_trainer.sources.stores import Stored

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Local:
    """A checkpoint on the volume. content: of its manifest."""

    folder: Path
    manifest: Manifest
    content: bytes
    digest: str


class _Gone(Exception):
    """A checkpoint was removed or amended while it was copied."""


def save(place: Place, root: Path, settings: Checkpoint, trust: Trust | None, progress: Progress) -> CheckpointRef:
    """Copy the newest checkpoint, then others that the retention keeps and the mirror lacks; delete what the retention does not keep.

    root: the folder of all checkpoints. trust: records of the job's checkpoints; only recorded ones are copied, so that what others put on the
    volume does not become the job's. None copies every checkpoint whose files are right. Returns the newest that the mirror has whole.
    Raises TrainerError: INPUT_NOT_FOUND without a checkpoint, VOLUME_ERROR when one is damaged, and what Place and the store raise; OSError.
    """
    there = place.take()
    tried: set[str] = set()
    while True:
        local = _on_volume(root, trust)
        if not local:
            raise input_not_found(f"{root}: there is no checkpoint to copy")
        newest = local[0]
        try:
            there = _copy(place, there, newest, progress)
            break
        except _Gone as error:
            # The training saves and removes checkpoints meanwhile; then there is another one.
            if newest.digest in tried:
                raise volume_error(f"{newest.folder}: {error}") from error
            tried.add(newest.digest)
            there = place.take()
    costs = _costs(place, there) | {one.manifest.step: one.manifest.selection_cost for one in local}
    keep = retained(costs, newest.manifest.step, settings.keep_last, settings.keep_best)
    for step in sorted(steps(there) - keep):
        there = _delete(place, there, step)
    for one in local[1:]:
        if one.manifest.step in keep:
            with suppress(_Gone):
                there = _copy(place, there, one, progress)
    return reference(root, newest.manifest, newest.digest)


def _on_volume(root: Path, trust: Trust | None) -> list[_Local]:
    """Checkpoints that may be copied, newest first."""
    found = []
    for _, folder in committed(root):
        try:
            content = read_content(folder)
            manifest, digest = parse_manifest(content, folder.name), hashlib.sha256(content).hexdigest()
            doubt = trust.judge(manifest, digest) if trust is not None else ""
        except BadCheckpoint:
            continue
        if not doubt:
            found.append(_Local(folder, manifest, content, digest))
    return found


def _copy(place: Place, there: dict[str, Stored], one: _Local, progress: Progress) -> dict[str, Stored]:
    """Copy a checkpoint, unless the mirror has it; returns what the mirror has then. Raises _Gone, TrainerError, OSError."""
    folder, name = place.folder, one.folder.name
    manifest = f"{name}/{MANIFEST}"
    has = partial(folder.holds, there)
    missing = [
        file for file, entry in one.manifest.files.items() if not has(f"{name}/{file}", entry.size, entry.sha256)
    ]
    others = [
        other
        for other in files_of(there, one.manifest.step)
        if other != manifest and other.rpartition("/")[2] not in one.manifest.files
    ]
    if not missing and not others and has(manifest, len(one.content), one.digest):
        return there
    if missing or others:
        # What is about to change must not look whole.
        for stale in [manifest, *others]:
            if stale in there:
                folder.delete(stale)
    for number, file in enumerate(missing, start=1):
        progress(f"copying {file} of step {one.manifest.step} to the mirror ({number} of {len(missing)})")
        _upload(place, one, file)
    now = place.take()
    if any(
        (found := now.get(f"{name}/{file}")) is None or found.size != entry.size
        for file, entry in one.manifest.files.items()
    ):
        raise _Gone("another copy to the same mirror removed files of it")
    folder.write(manifest, one.content, one.digest)
    progress(f"step {one.manifest.step} is in {folder.url}")
    return place.take()


def _upload(place: Place, one: _Local, name: str) -> None:
    entry = one.manifest.files[name]

    def differs() -> Exception:
        if not (one.folder / MANIFEST).exists():
            return _Gone("it was removed while it was copied")
        return volume_error(
            f"{one.folder / name}: the SHA-256 is not the one in the manifest, so it is not copied to the mirror"
        )

    try:
        with open_plain(one.folder / name) as file:
            if os.fstat(file.fileno()).st_size != entry.size:
                raise differs()
            place.folder.upload(f"{one.folder.name}/{name}", file, entry.size, entry.sha256, differs, lambda: None)
    except FileNotFoundError as error:
        raise _Gone("it was removed while it was copied") from error


def _costs(place: Place, there: dict[str, Stored]) -> dict[int, float | None]:
    """Cost of the evaluation of each checkpoint that the mirror has whole, by step. One whose manifest can't be read is not kept."""
    costs: dict[int, float | None] = {}
    for step in whole(there):
        with suppress(BadCheckpoint):
            costs[step] = parse_manifest(place.manifest(there, step), folder_name(step)).selection_cost
    return costs


def _delete(place: Place, there: dict[str, Stored], step: int) -> dict[str, Stored]:
    gone = files_of(there, step)
    for name in gone:
        place.folder.delete(name)
    return {name: found for name, found in there.items() if name not in gone}
