"""The checkpoints of another job: in its folder on a volume, or in its mirror. They have one layout, checkpoint/layout.py, and are only read."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dpo_operator.api.model import ResumeFrom
from dpo_trainer.batches.rankings import FILE
from dpo_trainer.checkpoint.layout import folder_name
from dpo_trainer.checkpoint.manifest import MANIFEST, MAX_MANIFEST_BYTES
from dpo_trainer.checkpoint.plain_files import BadCheckpoint, sanitized
from dpo_trainer.prepare.inputs import Inputs
from dpo_trainer.runtime.errors import TrainerError, input_not_found, invalid_configuration
from dpo_trainer.sources.kinds import FileSource
from dpo_trainer.sources.resolve import resolve

FIELD = "spec.resumeFrom"
_MANIFEST = re.compile(rf"(?P<folder>(?:.*/)?)step-(?P<step>\d{{8,12}})/{re.escape(MANIFEST)}", re.ASCII | re.DOTALL)
# Folders and steps that a message lists.
_LISTED = 5


@dataclass(frozen=True)
class Found:
    """The folder of another job's checkpoints.

    source: the files there. folder: of the checkpoints in it, empty or with a slash at its end. steps: of those that have a manifest, newest first.
    temporary: where small files that are elsewhere are downloaded to.
    """

    source: FileSource
    folder: str
    steps: tuple[int, ...]
    temporary: Path

    @property
    def label(self) -> str:
        """The folder, for messages and records."""
        return f"{self.source.label.rstrip('/')}/{self.folder}".rstrip("/")

    def choose(self, step: int | None) -> int:
        """The step that is asked for, or the newest. Raises TrainerError INPUT_NOT_FOUND."""
        if step is None:
            return self.steps[0]
        if step not in self.steps:
            there = ", ".join(map(str, self.steps[:_LISTED])) + (" and others" if len(self.steps) > _LISTED else "")
            raise input_not_found(
                f"{FIELD}.step: {self.label} has no committed checkpoint of step {step}, found {there}"
            )
        return step

    def manifest(self, step: int) -> bytes:
        """Content of a checkpoint's manifest. Raises BadCheckpoint; TrainerError of the source."""
        name = f"{self.folder}{folder_name(step)}/{MANIFEST}"
        if self.source.sizes[name] > MAX_MANIFEST_BYTES:
            raise BadCheckpoint(
                f"{MANIFEST}: expected at most {MAX_MANIFEST_BYTES} bytes, found {self.source.sizes[name]}"
            )
        return self._read(name)

    def fetch(self, step: int, file: str, target: Path, progress: Callable[[float], None]) -> None:
        """Copy one file of a checkpoint. Raises BadCheckpoint when there is none; TrainerError of the source; OSError of the target."""
        name = f"{self.folder}{folder_name(step)}/{file}"
        if name not in self.source.sizes:
            raise BadCheckpoint(f"{sanitized(file)}: is missing")
        self.source.fetch(name, target, progress)

    def beside(self, name: str, limit: int) -> bytes | None:
        """A file of the run beside its checkpoints; None where there is none, or one of more than `limit` bytes."""
        name = f"{self.folder.removesuffix('checkpoints/')}{name}"
        return self._read(name) if 0 < self.source.sizes.get(name, 0) <= limit else None

    def lists(self) -> list[str]:
        """Names of the lists of selected pairs beside its checkpoints, and of what describes them."""
        folder = f"{self.folder.removesuffix('checkpoints/')}selection/"
        names = (name.removeprefix(folder) for name in self.source.sizes if name.startswith(folder))
        return sorted(name for name in names if FILE.fullmatch(name))

    def _read(self, name: str) -> bytes:
        target = self.temporary / "small"
        self.source.fetch(name, target)
        return target.read_bytes()


def find(settings: ResumeFrom, inputs: Inputs, temporary: Path) -> Found:
    """Look for checkpoints in the folder that the job names: in it, or anywhere below it. temporary: see Found.

    Raises TrainerError: INPUT_NOT_FOUND without a checkpoint, INVALID_CONFIGURATION when there are those of several runs, and what the source raises.
    """
    label = f"{FIELD}.source: {settings.source}"
    source = resolve(settings.source, claims=inputs.claims, elsewhere=inputs.elsewhere(None, lambda _: None))
    if not isinstance(source, FileSource) or source.is_file:
        raise invalid_configuration(f"{label} is one file or a hub; name the folder of a job, or its mirror")
    folders: dict[str, list[int]] = {}
    for match in filter(None, map(_MANIFEST.fullmatch, source.sizes)):
        folders.setdefault(match["folder"], []).append(int(match["step"]))
    if not folders:
        raise _none(label)
    if len(folders) > 1:
        some = ", ".join(sanitized(folder.rstrip("/") or ".") for folder in sorted(folders)[:_LISTED])
        raise invalid_configuration(
            f"{label} has checkpoints in {len(folders)} folders ({some}{', …' if len(folders) > _LISTED else ''}); name one of them"
        )
    ((folder, steps),) = folders.items()
    return Found(source, folder, tuple(sorted(steps, reverse=True)), temporary)


def _none(label: str) -> TrainerError:
    return input_not_found(
        f"{label} has no committed checkpoint: no folder step-… with a {MANIFEST}, in it or below it. On a claim, a job's files are in the folder "
        "that its status.volume.folder names; a mirror's are where its checkpoint.mirror.to says"
    )
