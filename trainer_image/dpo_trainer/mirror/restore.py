"""Fetches the newest checkpoint that a mirror has whole, onto a volume that has none."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dpo_operator.api.reports import CheckpointRef
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.manifest import MANIFEST, Manifest, parse_manifest, read_manifest, reference
from dpo_trainer.checkpoint.plain_files import BadCheckpoint
from dpo_trainer.checkpoint.trust import Owner
from dpo_trainer.checkpoint.verification import verify
from dpo_trainer.mirror.place import Place, whole
from dpo_trainer.runtime.errors import input_not_found
from dpo_trainer.runtime.files import commit, remove, sync_folder, write_synced
from dpo_trainer.sources.downloads import download
from dpo_trainer.sources.stores import Stored

Progress = Callable[[str, float], None]

# Where files are until the checkpoint is whole.
_TEMPORARY = ".restored.tmp"


def restore(place: Place, root: Path, owner: Owner, progress: Progress) -> CheckpointRef | None:
    """Fetch the newest checkpoint that is whole, intact and the owner's; None when the mirror has none, and nothing is fetched.

    root: the folder of all checkpoints. A fetch that was interrupted is continued. Does nothing but finish an earlier fetch when there are checkpoints.
    Raises TrainerError: INPUT_NOT_FOUND when the mirror has checkpoints and none can be used, and what Place and the store raise; OSError.
    """
    if not layout.committed(root):
        there = place.look()
        refused: list[str] = []
        for step in whole(there):
            try:
                _fetch(place, there, step, root, owner, progress)
                break
            except BadCheckpoint as error:
                refused.append(f"{layout.folder_name(step)}: {error}")
                progress(f"skipped a checkpoint of the mirror: {refused[-1]}", 0.0)
        else:
            if refused:
                raise input_not_found(
                    f"None of the {len(refused)} checkpoints in {place.folder.url} is intact and belongs to this job: {'; '.join(refused)}. Undo the "
                    "change, or name a new folder in spec.checkpoint.mirror.to to train from the start."
                )
            return None
    _, folder = layout.committed(root)[0]
    manifest, digest = read_manifest(folder)
    # The attempt that wrote it has begun, so that the next one has a higher number.
    if layout.read_fence(root) < manifest.attempt:
        commit(root / layout.FENCE, f"{manifest.attempt}\n".encode())
    remove(root / _TEMPORARY)
    return reference(root, manifest, digest)


def _fetch(place: Place, there: dict[str, Stored], step: int, root: Path, owner: Owner, progress: Progress) -> None:
    """Fetch one checkpoint and commit it. Raises BadCheckpoint, TrainerError, OSError."""
    content = place.manifest(there, step)
    name = layout.folder_name(step)
    manifest = parse_manifest(content, name)
    if doubt := owner.judge(manifest, hashlib.sha256(content).hexdigest()):
        progress(f"{name} of the mirror: {doubt}", 0.0)
    folder = root / _TEMPORARY / name
    for file in manifest.files:
        _fetch_file(place, there, manifest, file, folder, progress)
    remove(folder / MANIFEST)
    write_synced(folder / MANIFEST, content)
    sync_folder(folder)
    folder.rename(root / name)
    sync_folder(root)


def _fetch_file(
    place: Place, there: dict[str, Stored], manifest: Manifest, file: str, folder: Path, progress: Progress
) -> None:
    """Download a file, unless it is there from an earlier try, and compare it with the manifest."""
    name, label = f"{folder.name}/{file}", f"fetching {file} of step {manifest.step} from the mirror"
    if name not in there:
        raise BadCheckpoint(f"{file}: is missing")
    with suppress(BadCheckpoint):
        verify(folder, file, manifest.files[file])
        return
    # There is none yet, or one of another checkpoint of this step.
    target = folder / file
    download(place.folder.store, there[name], target, place.folder.label(name), lambda share: progress(label, share))
    verify(folder, file, manifest.files[file])
