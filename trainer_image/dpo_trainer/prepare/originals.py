"""The files that prepare read, so that one which was edited under the same name is noticed.

Only files of this machine and of claims: a hub's have a commit. A file with the size and the time of its last change that it had
counts as the same; another time alone does not make it another file, its SHA-256 does.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping

from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.data import mixture, rows
from dpo_trainer.prepare.inputs import Inputs
from dpo_trainer.prepare.record import Original, Prepared
from dpo_trainer.pretrained import adapters
from dpo_trainer.pretrained.files import small_files
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.sources import resolve
from dpo_trainer.sources.kinds import FileSource, Source

log = logging.getLogger(__name__)

MODEL, ADAPTER, REFERENCE, JUDGE = "model", "adapter", "reference", "judge"
_MODELS = (MODEL, REFERENCE, JUDGE)
_KINDS = ("path", "claim")
_MEBIBYTE = 1 << 20


def times(source: Source, names: Iterable[str]) -> dict[str, int]:
    """When each file was changed last, in nanoseconds; nothing for files of other machines. Raises TrainerError as open does."""
    found: dict[str, int] = {}
    if isinstance(source, FileSource) and source.kind in _KINDS:
        for name in names:
            with source.open(name) as file:
                found[name] = os.fstat(file.fileno()).st_mtime_ns
    return found


def originals(source: Source, names: Iterable[str]) -> dict[str, Original]:
    """What is recorded of files: read them once. Call it before they are used, so that a later edit is never taken for the earlier content."""
    return {
        name: Original(size=source.sizes[name], modified=modified, sha256=_sha256(source, name))
        for name, modified in times(source, names).items()
        if isinstance(source, FileSource)
    }


def edited(spec: DPOJobSpec, made: Prepared, inputs: Inputs) -> str | None:
    """The first file that is not what prepare read, in words; None when there is none.

    A source that is gone, or can't be read by now, is none: what was prepared from it is still there.
    """
    sources = {MODEL: (spec.model.name, "train")}
    sources |= {name: (data.source, data.split) for name, data in mixture.sources(spec.data).items()}
    if spec.model.reference is not None:
        sources[REFERENCE] = (spec.model.reference.name, "train")
    if spec.iterative is not None and spec.iterative.judge.reward_model is not None:
        sources[JUDGE] = (spec.iterative.judge.reward_model.name, "train")
    if spec.model.adapter is not None:
        sources[ADAPTER] = (spec.model.adapter.name, "train")
    if spec.data.eval is not None:
        sources["eval"] = (spec.data.eval.source, spec.data.eval.split)
    if spec.iterative is not None and (prompts := spec.iterative.prompts) is not None:
        sources["prompts"] = (prompts.source, prompts.split)
    for name, (label, split) in sources.items():
        known = made.originals.get(name)
        if not known:
            continue
        try:
            source = resolve(label, claims=inputs.claims)
            wanted = _wanted(name, source, split)
            if isinstance(source, FileSource):
                # The weights may have been deleted to save space: they are in the work folder.
                there = {
                    file: original for file, original in known.items() if name not in _MODELS or file in source.sizes
                }
                if (what := _difference(source, wanted, there)) is not None:
                    return f"{source.label}: {what}"
        except TrainerError as error:
            log.warning("%s; what was prepared from it earlier is used", error)
    return None


def _wanted(name: str, source: Source, split: str) -> set[str]:
    """Names of the files that would be read, but for a model's weights, which its index names."""
    if not isinstance(source, FileSource):
        return set()
    if name == ADAPTER:
        return set(adapters.file_names(source.sizes, source.label))
    return set(small_files(source.sizes, source.label) if name in _MODELS else rows.data_files(source, split))


def _difference(source: FileSource, wanted: set[str], known: Mapping[str, Original]) -> str | None:
    for name in sorted(wanted | known.keys()):
        if name not in known:
            return f"{name} is new"
        if name not in source.sizes:
            return f"{name} is gone"
    for name, modified in times(source, known).items():
        original = known[name]
        if source.sizes[name] != original.size:
            return f"{name} has {source.sizes[name]} bytes, and had {original.size}"
        if modified != original.modified and _sha256(source, name) != original.sha256:
            return f"{name} has other content"
    return None


def _sha256(source: FileSource, name: str) -> str:
    digest = hashlib.sha256()
    with source.open(name) as file:
        while piece := file.read(_MEBIBYTE):
            digest.update(piece)
    return digest.hexdigest()
