"""Takes a checkpoint of another job: its files are copied to the job's own folder, where training resumes from it as from one of its own."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from dpo_operator.api.reports import ResumeReport
from dpo_operator.api.rules.resuming import LENGTH
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.batches import rankings
from dpo_trainer.batches.plans import plan_of
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.identity import differences, mismatch_message
from dpo_trainer.checkpoint.manifest import MANIFEST, Manifest, parse_manifest, reference
from dpo_trainer.checkpoint.plain_files import BadCheckpoint
from dpo_trainer.checkpoint.trust import Owner
from dpo_trainer.checkpoint.verification import kinds_of, verify, verify_shards
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.mirror import run_files
from dpo_trainer.prepare.inputs import Inputs
from dpo_trainer.prepare.record import checkpoint_owner
from dpo_trainer.resuming.found import FIELD, Found, find
from dpo_trainer.runtime.errors import TrainerError, input_not_found, invalid_configuration
from dpo_trainer.runtime.files import commit, remove, sync_folder, write_synced
from dpo_trainer.runtime.workdir import WorkDir

# Where files are until the checkpoint is whole.
_TEMPORARY = ".resumed.tmp"
# The checkpoint is as one that the job's first attempt has written.
_ATTEMPT = 1
_WEIGHTS_ALONE = "to begin with its weights alone, name its export in model.name"


def take(spec: DPOJobSpec, work: WorkDir, inputs: Inputs) -> ResumeReport | None:
    """Put the checkpoint that spec.resumeFrom names into a prepared work folder; what it is and whence, None without one.

    Does nothing where there are checkpoints already. One that was interrupted is continued. The files are those of the other job; the manifest is
    the job's own, of attempt 1.
    Raises TrainerError: INVALID_CONFIGURATION for a checkpoint of other settings or one that leaves nothing to train, INPUT_NOT_FOUND for
    one that is not whole, and what found.find and the source raise; OSError.
    """
    if spec.resume_from is None:
        return None
    if not layout.committed(work.checkpoints):
        temporary = work.checkpoints / _TEMPORARY
        temporary.mkdir(parents=True, exist_ok=True)
        found = find(spec.resume_from, inputs, temporary)
        step = found.choose(spec.resume_from.step)
        name = f"{found.label}/{layout.folder_name(step)}"
        try:
            _take(spec, work, found, step, temporary / layout.folder_name(step), inputs.progress)
        except BadCheckpoint as error:
            raise input_not_found(
                f"{FIELD}: {name} is not intact: {error}. Name another checkpoint with {FIELD}.step"
            ) from error
        inputs.progress(f"training begins with {name}", 1.0)
    remove(work.checkpoints / _TEMPORARY)
    return ResumeReport.model_validate_json(work.resumed.read_bytes()) if work.resumed.is_file() else None


def _take(
    spec: DPOJobSpec, work: WorkDir, found: Found, step: int, folder: Path, progress: Callable[[str, float], None]
) -> None:
    """Check a checkpoint, copy its files, and commit it. Raises BadCheckpoint, TrainerError, OSError."""
    assert spec.resume_from is not None
    content = found.manifest(step)
    theirs, digest = parse_manifest(content, folder.name), hashlib.sha256(content).hexdigest()
    label = f"{FIELD}: {found.label}/{folder.name}"
    if spec.resume_from.digest not in (None, digest):
        raise invalid_configuration(f"{label} has the digest {digest}, expected {spec.resume_from.digest}")
    own = _as_own(spec, work, checkpoint_owner(spec, work, None), theirs, label)
    lists = found.lists()
    if theirs.state.selected is not None and not lists:
        raise input_not_found(
            f"{label} was trained on a list of selected pairs, and there is no folder selection beside the checkpoints; name the folder of the whole job"
        )
    for name in lists:
        if (listed := found.beside(f"selection/{name}", rankings.MOST_BYTES)) is not None:
            run_files.put_list(work, name, listed)
    if (selected := theirs.state.selected) is not None and not rankings.has(work.selection, selected):
        raise input_not_found(
            f"{label} was trained on the list of pairs with the SHA-256 {selected}, which the folder selection beside the checkpoints does not have"
        )
    for number, file in enumerate(theirs.files, start=1):
        say = partial(progress, f"copying {file} of step {step} ({number} of {len(theirs.files)})")
        # There may be one of an earlier try.
        with suppress(BadCheckpoint):
            verify(folder, file, theirs.files[file])
            continue
        folder.mkdir(exist_ok=True)
        found.fetch(step, file, folder / file, say)
    verify_shards(folder, theirs, range(theirs.world_size), kinds=kinds_of(theirs))
    for path in run_files.files(work):
        if (figures := found.beside(path.name, run_files.MOST_BYTES)) is not None:
            run_files.put(work, path, figures, step)
    remove(folder / MANIFEST)
    write_synced(folder / MANIFEST, own.to_bytes())
    sync_folder(folder)
    ref = reference(work.checkpoints, own, hashlib.sha256(own.to_bytes()).hexdigest())
    commit(work.resumed, ResumeReport(source=found.label, digest=digest, checkpoint=ref).model_dump_json().encode())
    folder.rename(work.checkpoints / folder.name)
    sync_folder(work.checkpoints)


def _as_own(spec: DPOJobSpec, work: WorkDir, owner: Owner, theirs: Manifest, label: str) -> Manifest:
    """The manifest as the job's own. Raises TrainerError INVALID_CONFIGURATION when the states of the two can't be compared."""
    state = theirs.state
    fixed = [
        {path: value for path, value in side.items() if path not in LENGTH}
        for side in (theirs.identity, owner.identity)
    ]
    problems = differences(*fixed)
    if state.evaluations and state.selection_metric != spec.selection_metric:
        problems.append(
            f"spec.earlyStopping.metric: its checkpoints were chosen by {state.selection_metric}, this job's by {spec.selection_metric}"
        )
    if problem := mismatch_message(problems):
        raise invalid_configuration(f"{label} {problem}. Set these as the other job has them; {_WEIGHTS_ALONE}")
    training = spec.training
    plan = plan_of(spec, len(PairDataset.open(work.train_data)))
    total = plan.total_steps(epochs=training.epochs, max_steps=training.max_steps)
    as_long = all(theirs.identity.get(path) == owner.identity.get(path) for path in LENGTH)
    if state.step >= total or (state.finished and as_long):
        raise _nothing_left(label, theirs, total)
    return theirs.model_copy(
        update={
            "attempt": _ATTEMPT,
            "identity": dict(owner.identity),
            "state": state.model_copy(update={"finished": "", "total_steps": total}),
        }
    )


def _nothing_left(label: str, theirs: Manifest, total: int) -> TrainerError:
    ended = f" ({theirs.state.finished})" if theirs.state.finished else ""
    return invalid_configuration(
        f"{label} leaves nothing to train: it is of step {theirs.step} of {theirs.state.total_steps}{ended}, and this job has {total} steps. To train on, "
        f"raise spec.training.epochs or maxSteps; {_WEIGHTS_ALONE}"
    )
