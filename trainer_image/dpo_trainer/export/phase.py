"""The export: from a checkpoint to a folder for transformers or PEFT, verified by loading it.

The phase exports the last or the best checkpoint of a finished training, a user may export any intact one.

One process on the CPU, without DeepSpeed. The folder appears when it is complete and checked; running again finds it.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.model import AdapterType
from dpo_operator.api.types import DPOJob, DPOJobSpec
from dpo_trainer.checkpoint.full import FullCheckpoint, open_best, open_newest, require_any
from dpo_trainer.checkpoint.plain_files import BadCheckpoint
from dpo_trainer.checkpoint.trust import Owner, Trust
from dpo_trainer.export.check import check_probe, check_weights, load_exported, make_probe
from dpo_trainer.export.files import MERGED, copy_small_files, write_adapter, write_merged, write_model
from dpo_trainer.export.model_card import ExportedFolder, model_card
from dpo_trainer.prepare.record import checkpoint_owner
from dpo_trainer.pretrained import adapters
from dpo_trainer.pretrained.files import sha256_of
from dpo_trainer.runtime.errors import TrainerError, input_not_found, invalid_configuration, volume_error
from dpo_trainer.runtime.files import remove, sha256, sync_folder
from dpo_trainer.runtime.termination import classify
from dpo_trainer.runtime.versions import own_version
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.selection import METRICS

PROVENANCE = "dpo_provenance.json"

Progress = Callable[[str], None]


def run(
    job: DPOJob, work: WorkDir, *, progress: Progress, trust: Trust | None = None, target: Path | None = None
) -> str:
    """Write, load and check the trained model or adapter; returns its folder, relative to the work folder.

    trust: see checkpoint.trust; None accepts any intact checkpoint. target: default the folder's own export. Raises TrainerError INPUT_NOT_FOUND when training has
    not finished, BAD_EXPORT when what was written does not give the trained policy's log-probs.
    """
    _quiet()
    require_any(work.checkpoints)
    checkpoint, why = _choose(job.spec, work.checkpoints, checkpoint_owner(job.spec, work, trust), progress)
    target = target or work.export
    if _is_done(target, job, checkpoint):
        progress("already exported")
    else:
        _export(job, work, checkpoint, why, target, progress)
    return target.relative_to(work.root).as_posix()


def export_one(job: DPOJob, work: WorkDir, folder: Path, target: Path, *, progress: Progress) -> None:
    """Write, load and check the weights of one checkpoint of a run, whether or not it is the last or was evaluated.

    folder: the checkpoint's. target: new, empty, or an earlier export, which is replaced.
    Raises TrainerError VOLUME_ERROR when the checkpoint is not intact, INVALID_CONFIGURATION when target holds something else.
    """
    _quiet()
    if target.exists() and not (target / PROVENANCE).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise invalid_configuration(
            f"{target}: expected a new or empty folder, or an earlier export, found other files"
        )
    progress("checking the checkpoint")
    try:
        checkpoint = FullCheckpoint(folder.parent, folder, checkpoint_owner(job.spec, work, None))
    except BadCheckpoint as error:
        raise volume_error(f"{folder} can't be exported: {error}") from error
    _export(job, work, checkpoint, "chosen by hand", target, progress)


def _export(job: DPOJob, work: WorkDir, checkpoint: FullCheckpoint, why: str, target: Path, progress: Progress) -> None:
    spec, precision = job.spec, job.spec.training.precision
    temporary = target.with_name(f".{target.name}.tmp")
    remove(temporary)
    temporary.mkdir(parents=True)
    progress("writing the weights")
    adapter, classifier = spec.adapter.type is not AdapterType.NONE, spec.method.trains_reward_model
    if adapter:
        stored = write_adapter(job, work.model, checkpoint, temporary)
    else:
        stored = write_model(work.model, checkpoint, temporary, classifier=classifier)
    copy_small_files(work.model, temporary, adapter=adapter)

    progress("loading what was written")
    four_bit = spec.adapter.type is AdapterType.QLORA
    model = load_exported(work.model, temporary, precision, four_bit=four_bit, classifier=classifier)
    check_weights(model, checkpoint, stored, precision)
    exported = ExportedFolder(why, whole=not adapter, merged=False)
    probe = checkpoint.state.probe
    if probe is not None:
        progress("comparing its log-probs with the trained policy's")
        worst = check_probe(model, work, probe, set(stored.values()))
        exported = replace(exported, difference=worst, pairs=len(probe.pairs))
    _finish(job, work, checkpoint, temporary, target, {"": exported})
    if adapter and spec.export.merge:
        # Only now: the adapter is on the volume whatever becomes of the merge.
        try:
            _add_merged(job, work, checkpoint, exported, target, progress)
        except Exception as error:
            remove(temporary)
            raise _merge_failed(error, checkpoint, target) from error
    progress(f"exported to {target}")


def _add_merged(
    job: DPOJob,
    work: WorkDir,
    checkpoint: FullCheckpoint,
    adapter: ExportedFolder,
    target: Path,
    progress: Progress,
) -> None:
    """Replace an export of an adapter by one that also has the model with the adapter merged into it."""
    progress("merging the adapter into the model")
    precision, probe = job.spec.training.precision, checkpoint.state.probe
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.copytree(target, temporary)
    if job.spec.adapter.type is AdapterType.QLORA:
        # The engine's log-probs are those on the 4-bit base, and the merge is into the base as it was.
        probe = None
    # Checkpoints without an evaluation have no probe. The adapter's log-probs are used instead: its weights are the checkpoint's.
    classifier = job.spec.method.trains_reward_model
    against = probe or make_probe(load_exported(work.model, target, precision, classifier=classifier), work, precision)
    dtype = write_merged(work.model, temporary, classifier=classifier)
    merged = load_exported(work.model, temporary / MERGED, precision, classifier=classifier)
    worst = check_probe(merged, work, against, {dtype})
    parts = {"": replace(adapter, merged=True)}
    parts[MERGED] = replace(parts[""], whole=True, difference=worst, pairs=len(against.pairs), engine=probe is not None)
    _finish(job, work, checkpoint, temporary, target, parts)


def _merge_failed(error: Exception, checkpoint: FullCheckpoint, target: Path) -> TrainerError:
    """What failed, what there is, and what to do. An error of no known kind is the merge's own."""
    code, message = classify(error)
    if code == ExitCode.INTERNAL_ERROR and not isinstance(error, MemoryError):
        code = ExitCode.BAD_EXPORT
    return TrainerError(
        code,
        f"The adapter is exported to {target}, verified and ready to use, but it could not be merged into the model: {message} Set "
        f"spec.export.merge to false, or, for this run, use the adapter as it is; `dpo export {checkpoint.folder} --no-merge` writes it again.",
    )


def _finish(
    job: DPOJob,
    work: WorkDir,
    checkpoint: FullCheckpoint,
    temporary: Path,
    target: Path,
    parts: dict[str, ExportedFolder],
) -> None:
    """Write cards and provenance, and move the folder into place. parts: by relative folder."""
    for folder, part in parts.items():
        (temporary / folder / "README.md").write_text(model_card(job, work, checkpoint, part), encoding="utf-8")
    _write_provenance(temporary, job, work, checkpoint, parts)
    replace_folder(temporary, target)


def _choose(spec: DPOJobSpec, root: Path, owner: Owner, progress: Progress) -> tuple[FullCheckpoint, str]:
    """The checkpoint to export, and the reason for the choice."""
    progress("checking the last checkpoint")
    newest, refused = open_newest(root, owner)
    if not newest.state.finished:
        because = f" ({'; '.join(refused)})" if refused else ""
        raise input_not_found(
            f"Expected the checkpoint of the last step, found step {newest.manifest.step} of "
            f"{newest.state.total_steps}{because}; train to the end first."
        )
    for reason in refused:
        progress(f"skipped a checkpoint: {reason}")
    if newest.doubt:
        progress(f"{newest.folder.name}: {newest.doubt}")
    if not spec.exports_best:
        return newest, "the last step"
    progress("looking for the best checkpoint")
    best, skipped = open_best(root, newest, owner)
    for reason in skipped:
        progress(f"skipped a better checkpoint: {reason}")
    if best is None:
        progress("exporting the last checkpoint: no evaluated checkpoint is intact")
        return newest, "the last step, because no checkpoint with an evaluation is intact"
    cost = best.manifest.selection_cost or 0.0
    value = -cost if METRICS[spec.selection_metric][1] else cost
    progress(f"exporting step {best.manifest.step}: {spec.selection_metric} {value:.4f}")
    without = f"; better ones are gone: {'; '.join(skipped)}" if skipped else ""
    return best, f"the best {spec.selection_metric}, {value:.4f}{without}"


def _quiet() -> None:
    """No progress bars in a log, and no search for a GPU by DeepSpeed, which transformers imports when it is there."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _is_done(folder: Path, job: DPOJob, checkpoint: FullCheckpoint) -> bool:
    """Whether the folder is this checkpoint's export with the job's export settings, and its files are unchanged."""
    try:
        document = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        return (
            document["checkpoint"]["digest"] == checkpoint.ref.digest
            and document["spec"]["export"] == _plain_spec(job)["export"]
            # An export whose merge failed has the adapter alone.
            and (MERGED in document) == job.spec.export.merge
            and sha256_of(folder, document["files"]) == document["files"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _plain_spec(job: DPOJob) -> dict[str, Any]:
    return job.spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def _write_provenance(
    folder: Path, job: DPOJob, work: WorkDir, checkpoint: FullCheckpoint, parts: dict[str, ExportedFolder]
) -> None:
    """Write the provenance: checkpoint, settings, and the digest of every file. parts: by relative folder."""
    probe = checkpoint.state.probe.model_dump(mode="json") if checkpoint.state.probe else {}
    document = {
        "job": job.metadata.name,
        "stands_on": _stands_on(job, work),
        "spec": _plain_spec(job),
        "checkpoint": {**checkpoint.ref.model_dump(), "chosen_as": parts[""].why},
        "identity": checkpoint.manifest.identity,
        "probe": {**probe, "largest_difference_nats": parts[""].difference},
        "versions": {**checkpoint.manifest.versions, "dpo-operator": own_version()},
        "files": sha256_of(
            folder, [path.relative_to(folder).as_posix() for path in _files(folder) if path.name != PROVENANCE]
        ),
    }
    if MERGED in parts:
        document["merged"] = {"largest_difference_nats": parts[MERGED].difference}
    (folder / PROVENANCE).write_text(json.dumps(document, indent=1), encoding="utf-8")


def _stands_on(job: DPOJob, work: WorkDir) -> dict[str, Any]:
    """The model, and the adapter that training started from, with the SHA-256 of its weights; of an adapter that was trained on the model alone
    is needed to use the export."""
    model = job.spec.model
    found: dict[str, Any] = {"model": model.name, "revision": model.revision}
    if model.adapter is not None:
        digest = sha256(work.model / adapters.FOLDER / adapters.WEIGHTS)
        found["adapter"] = {**model.adapter.model_dump(mode="json"), "sha256": digest}
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def replace_folder(temporary: Path, target: Path) -> None:
    """Replace an older export. A crash leaves one of the two, and export runs again."""
    for path in _files(temporary):
        path.chmod(0o644)  # safetensors makes files that other users may not read
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for folder in {path.parent for path in _files(temporary)}:
        sync_folder(folder)
    old = target.with_name(f".{target.name}.old.tmp")
    remove(old)
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    sync_folder(target.parent)
    remove(old)
