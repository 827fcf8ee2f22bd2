"""Copies an export to an object store: after it was verified, once, and never so that a half of it looks whole.

What a loader looks for first, config.json or adapter_config.json, comes after the weights, and dpo_pushed.json comes last. A push that was killed continues where
it stopped: each object has the SHA-256 of its content beside it.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import PushReport
from dpo_operator.api.training import Push
from dpo_trainer.runtime.errors import TrainerError, first_line, invalid_configuration
from dpo_trainer.runtime.files import sha256
from dpo_trainer.sources.access import Access
from dpo_trainer.sources.remote_folder import RemoteFolder, as_note, open_folder
from dpo_trainer.sources.stores import Stored

PROVENANCE = "dpo_provenance.json"
# Says whose the folder is and what may be in it, from before its first file on; says that it is whole, after its last.
BEGUN, WHOLE = "dpo_pushing.json", "dpo_pushed.json"
# Without these no loader takes a folder for a model or an adapter.
_ENTRANCES = ("config.json", "adapter_config.json")

Progress = Callable[[str], None]


def push(settings: Push, uid: str, folder: Path, access: Access, progress: Progress) -> PushReport:
    """Copy a verified export. uid: of the job. folder: the export. Does nothing when it is there already.

    Raises TrainerError: INVALID_CONFIGURATION when the folder there has somebody else's objects, BAD_EXPORT when a file here is not what was verified, and what
    store_answers.explain says.
    """
    target = open_folder(settings.to, access)
    url = target.url
    digest, files = contents(folder)
    mine = {"uid": uid, "digest": digest}
    there = target.begin(BEGUN, {**mine, "files": sorted(files)})
    markers = _markers(target, there, uid)
    done = markers.get(WHOLE, {}).items() >= mine.items()
    if done and all(_is_there(target, there, folder, name, files[name]) for name in files):
        if BEGUN in there:  # the last step of a push that was killed
            target.delete(BEGUN)
        progress(f"already pushed to {url}")
        return PushReport(to=url, digest=digest)
    pushed = _pushed(markers, files)
    if others := there.keys() - pushed:
        raise _not_ours(target, others)
    begun = {**mine, "files": sorted((pushed & there.keys() - {BEGUN, WHOLE}) | files.keys())}
    if markers.get(BEGUN) != begun:
        target.write(BEGUN, as_note(begun))
    # What is about to change must not look whole, and its objects may be an earlier export's.
    for name in sorted(there.keys() - {BEGUN}, key=lambda name: (name != WHOLE, name)):
        stays = name in files and _is_there(target, there, folder, name, files[name])
        if not stays and (name not in files or _base(name) in _ENTRANCES):
            target.delete(name)
    for number, name in enumerate(sorted(files, key=_order), start=1):
        if _is_there(target, there, folder, name, files[name]):
            continue
        progress(f"pushing {name} ({number} of {len(files)})")
        _upload(target, folder, name, files[name], progress)
    target.write(WHOLE, as_note({**mine, "files": files}))
    target.delete(BEGUN)
    progress(f"pushed to {url}")
    return PushReport(to=url, digest=digest)


def contents(folder: Path) -> tuple[str, dict[str, str]]:
    """SHA-256 of an export's provenance, which has the digests of the other files, and the SHA-256 of each file by its name, hex."""
    digest = sha256(folder / PROVENANCE)
    return digest, {**json.loads((folder / PROVENANCE).read_bytes())["files"], PROVENANCE: digest}


def _order(name: str) -> tuple[int, str]:
    """Weights first, and what makes a folder a model last."""
    base = _base(name)
    late = 2 if base in _ENTRANCES else 3 if base == PROVENANCE else 1
    return (0 if base.endswith(".safetensors") else late), name


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _markers(target: RemoteFolder, there: dict[str, Stored], uid: str) -> dict[str, dict[str, Any]]:
    """What pushes of this job noted, by the object's name. Raises TrainerError for a folder that is not this job's."""
    found = {name: target.note(there[name], name) for name in (WHOLE, BEGUN) if name in there}
    # A whole export is its job's, whoever began to push since.
    if next(iter(found.values()), {}).get("uid") != uid:
        raise _not_ours(target, there)
    return {name: noted for name, noted in found.items() if noted.get("uid") == uid}


def _pushed(markers: dict[str, dict[str, Any]], files: Iterable[str]) -> set[str]:
    """Names of what pushes of this job wrote here or were about to. files: of a push that did not note them, as earlier versions did not."""
    listed = (noted.get("files", files) for noted in markers.values())
    return {BEGUN, WHOLE, *(str(name) for names in listed for name in names)}


def _not_ours(target: RemoteFolder, others: Iterable[str]) -> TrainerError:
    return invalid_configuration(
        f"spec.export.push.to: {target.url} has objects that are not of this job's export ({', '.join(sorted(others)[:4])}); name a new folder, or "
        "empty this one"
    )


def _is_there(target: RemoteFolder, there: dict[str, Stored], folder: Path, name: str, digest: str) -> bool:
    """Whether an object has a file's size and digest."""
    return target.holds(there, name, (folder / name).stat().st_size, digest)


def _upload(target: RemoteFolder, folder: Path, name: str, digest: str, progress: Progress) -> None:
    """Upload a file; what was sent is compared with its digest, and the object appears when all of it was."""

    def differs() -> TrainerError:
        return TrainerError(
            ExitCode.BAD_EXPORT, f"{name} of the export is not the file that was verified; export again"
        )

    with (folder / name).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        target.upload(name, file, size, digest, differs, lambda: progress(f"pushing {name}"))


def not_pushed(error: TrainerError, path: str, to: str) -> TrainerError:
    """The error of a push, with where the export is meanwhile."""
    return TrainerError(
        error.exit_code,
        f"The model was exported to {path} on the volume, and not pushed to {to}: {first_line(error, 1500)}",
    )
