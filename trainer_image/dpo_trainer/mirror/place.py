"""The folder of a mirror: whose it is, and which checkpoints in it are whole."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dpo_operator.api.types import DPOJob
from dpo_trainer.checkpoint.layout import folder_name
from dpo_trainer.checkpoint.manifest import MANIFEST, MAX_MANIFEST_BYTES
from dpo_trainer.checkpoint.plain_files import BadCheckpoint
from dpo_trainer.checkpoint.trust import Trust
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration
from dpo_trainer.sources.remote_folder import RemoteFolder, as_note
from dpo_trainer.sources.stores import Stored

# Says whose the folder is, from before its first checkpoint on.
NOTE = "dpo_mirror.json"
# A run without a cluster, as owner.
_LOCAL = "local/"
_FILE = re.compile(r"step-(\d{8,12})/[^/]+")


def owner_of(job: DPOJob, trust: Trust | None) -> str:
    """Who a mirror belongs to: a DPOJob by its UID; without a cluster a run by its name and the UID that its work folder keeps."""
    return f"{_LOCAL}{job.metadata.name}/{job.metadata.uid}" if trust is None else job.metadata.uid


@dataclass(frozen=True)
class Place:
    """The folder of one owner's mirror."""

    folder: RemoteFolder
    owner: str

    def take(self) -> dict[str, Stored]:
        """Objects of the folder by name, which is the owner's from now on. Raises TrainerError, INVALID_CONFIGURATION when it is somebody else's."""
        return self._own(self.folder.begin(NOTE, {"owner": self.owner}))

    def look(self) -> dict[str, Stored]:
        """Objects of the folder by name; none when there is no such folder. Raises as take does."""
        there = self.folder.there()
        return self._own(there) if there else there

    def of_namesake(self) -> "Place":
        """The folder as its owner has it, where that is a local run of the same name, whose work folder was lost. Otherwise as it is."""
        there = self.folder.there()
        owner = self.folder.note(there[NOTE], NOTE).get("owner") if NOTE in there else None
        return replace(self, owner=str(owner)) if self._is_namesake(owner) else self

    def take_over(self) -> None:
        """Note that the folder is this owner's from now on."""
        self.folder.write(NOTE, as_note({"owner": self.owner}))

    def manifest(self, there: Mapping[str, Stored], step: int) -> bytes:
        """Content of a checkpoint's manifest. Raises BadCheckpoint, and TrainerError of the store."""
        name = f"{folder_name(step)}/{MANIFEST}"
        if there[name].size > MAX_MANIFEST_BYTES:
            raise BadCheckpoint(f"{MANIFEST}: expected at most {MAX_MANIFEST_BYTES} bytes, found {there[name].size}")
        return self.folder.store.part(there[name], 0, there[name].size, self.folder.label(name))

    def _own(self, there: dict[str, Stored]) -> dict[str, Stored]:
        owner = self.folder.note(there[NOTE], NOTE).get("owner") if NOTE in there else None
        if owner != self.owner:
            if self._is_namesake(owner):
                raise self._another_run()
            raise self._not_ours(there)
        return {name: found for name, found in there.items() if name != NOTE}

    def _is_namesake(self, owner: object) -> bool:
        """Whether an owner is a local run of the same name. Earlier versions noted the name alone."""
        name = self.owner.rpartition("/")[0]
        return name.startswith(_LOCAL) and isinstance(owner, str) and (owner == name or owner.startswith(f"{name}/"))

    def _another_run(self) -> TrainerError:
        return invalid_configuration(
            f"spec.checkpoint.mirror.to: {self.folder.url} is the mirror of a run of this name in another work folder. If that folder is lost, go on "
            "from the mirror with `dpo run --restore`; otherwise name a new folder, or empty this one"
        )

    def _not_ours(self, there: Mapping[str, Stored]) -> TrainerError:
        names = ", ".join(json.dumps(name)[1:-1] for name in sorted(there)[:3])
        return invalid_configuration(
            f"spec.checkpoint.mirror.to: {self.folder.url} has objects that are not of this job's mirror ({names}); name a new folder, or empty this one"
        )


def whole(there: Mapping[str, Stored]) -> list[int]:
    """Steps of the checkpoints that are whole, newest first."""
    return sorted((step for step in steps(there) if f"{folder_name(step)}/{MANIFEST}" in there), reverse=True)


def steps(there: Mapping[str, Stored]) -> set[int]:
    """Steps of which there is anything."""
    return {int(match[1]) for name in there if (match := _FILE.fullmatch(name))}


def files_of(there: Mapping[str, Stored], step: int) -> list[str]:
    """Names of what there is of a step; the manifest first, because without it nothing counts as a checkpoint."""
    manifest = f"{folder_name(step)}/{MANIFEST}"
    return sorted(
        (name for name in there if name.startswith(f"{folder_name(step)}/")), key=lambda name: (name != manifest, name)
    )
