"""What `why` needs to know of a run on this machine, or of a job's folder on a volume, from its files."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpo_operator.api import conditions as c
from dpo_operator.api import exitcodes, names
from dpo_operator.api.diagnosis import OF_PREPARE, Finding, worst_first
from dpo_operator.api.iterative import MAX_ROUND_HISTORY
from dpo_operator.api.phases import FIRST, LAST, Step, following, is_asked
from dpo_operator.api.reports import Metrics, Progress, RoundReport, Termination
from dpo_operator.api.status import Attempts, DPOJobStatus, Restart, State
from dpo_operator.api.statusparts.findings import FindingStatus
from dpo_operator.api.statusparts.rounds import RoundStatus
from dpo_operator.api.statusparts.stored import CheckpointStatus
from dpo_operator.api.text import quoted
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.cli.localfolder import is_busy, leg_statuses, legs_of
from dpo_operator.explain.case import Case, Place
from dpo_operator.planning.findings import as_status
from dpo_operator.planning.progress import final_metrics, progress_status, with_dataset

# Files that a work folder has at least one of.
MARKS = ("job.json", "metrics.jsonl", "prepared.json")
MAX_BYTES = 256 * 2**20
_KEYS = {
    "loss": "loss", "reward_margin": "rewards/margins", "reward_accuracy": "rewards/accuracies",
    "reward_chosen": "rewards/chosen", "reward_rejected": "rewards/rejected",
}  # fmt: skip


@dataclass(frozen=True)
class Said:
    """A termination message in the folder, and when it was written."""

    time: datetime
    words: Termination


def is_run(folder: Path) -> bool:
    """Whether a folder is the work folder of a run."""
    return folder.is_dir() and any((folder / mark).is_file() for mark in MARKS)


def read_case(folder: Path) -> Case:
    """The run in a work folder."""
    now = datetime.now(UTC)
    job = _json(folder / "job.json")
    job = job if isinstance(job, dict) else {}
    spec = _spec(job.get("spec"))
    busy = is_busy(folder)
    said = sorted(_terminations(folder), key=lambda each: each.time)
    status = _status(folder, spec, said, busy, now)
    status = status.model_copy(update={"findings": _findings(folder, folder / _shown(status), said)})
    return Case(
        name=str((job.get("metadata") or {}).get("name") or folder.name),
        namespace="",
        spec=spec,
        status=status,
        now=now,
        place=Place(cluster="", folder=str(folder)),
        busy=busy,
    )


def _status(folder: Path, spec: DPOJobSpec | None, said: list[Said], busy: bool, now: datetime) -> DPOJobStatus:
    """The folder's state in the operator's terms."""
    newest = _telling(said)
    step = _step(folder, spec, newest)
    phase, leg, legs = step.phase, folder / step.folder, leg_statuses(folder)
    if step == LAST:
        exported = [folder / names.leg_folder(each.leg) for each in legs if each.chosen]
        trained = sorted(path.parent for path in folder.glob("rounds/????/metrics.jsonl"))
        leg = (exported or trained or [folder])[-1]
    fence = _integer(_text(leg / "checkpoints" / "attempt")) if phase == "train" or step.whose == "" else 0
    attempt = max(fence, newest.attempt if newest and newest.phase == phase else 0, 1)
    status = DPOJobStatus(
        phase=phase,
        round=step.round,
        rounds=rounds_of(folder),
        leg=step.leg,
        legs=legs,
        attempts=Attempts(**{phase: attempt}),
    )
    status = status.model_copy(update={"progress": _progress(leg, phase, attempt, now), "checkpoint": _checkpoint(leg)})
    for each in said:
        status = with_dataset(status, each.words.dataset)
    killed = newest is None or newest.phase != phase or newest.attempt < attempt
    history = _history(said, phase, attempt if busy or killed else attempt - 1)
    status = status.model_copy(update={"restart_history": history, "restarts": len(history), **_counted(history)})
    if busy:
        return status.model_copy(update={"state": _WORKING[phase]})
    if newest is not None and _is_the_end(newest):
        return _finished(status, folder)
    if newest is not None and not killed and newest.outcome == "Failed":
        return _failed(status, _primary(said, newest), now)
    saved = f" The newest checkpoint has step {status.checkpoint.step}." if status.checkpoint else ""
    what = f"{phase} of {step.whose}" if step.whose else phase
    why = "It was stopped." if newest is not None and not killed else f"Its {what} was killed, or did not begin."
    return status.model_copy(update={"state": State.SUSPENDED, "message": f"{why}{saved}"})


def _shown(status: DPOJobStatus) -> str:
    """Folder of the training whose findings are shown: of the round or leg at work, else of the leg that is exported."""
    exported = next((each.leg for each in status.legs if each.chosen), 0)
    return status.step.folder or names.leg_folder(exported)


def _telling(said: list[Said]) -> Termination | None:
    """The newest words that say where the run is. `dpo preview` prepares a run again, at any time: words of later phases say more."""
    later = [each for each in said if each.words.phase != "prepare" or each.words.outcome != "Succeeded"]
    return (later or said)[-1].words if said else None


_WORKING: dict[names.Phase, State] = {
    "prepare": State.PREPARING,
    "generate": State.GENERATING,
    "judge": State.JUDGING,
    "train": State.TRAINING,
    "export": State.EXPORTING,
}


def _counted(history: list[Restart]) -> dict[str, Any]:
    counted = [each for each in history if each.counting == "Counted"]
    return {"counted_restarts": len(counted), "counted_restart_times": [int(each.time.timestamp()) for each in counted]}


def _step(folder: Path, spec: DPOJobSpec | None, newest: Termination | None) -> Step:
    """The phase that is at work, failed, or was the last, and its round."""
    number = _round(folder, newest) if spec is not None and spec.iterative is not None else 0
    if spec is not None and spec.sweep is not None and newest is not None and not _is_the_end(newest):
        return _leg_step(folder, spec, newest)
    if newest is None:
        return Step("train") if (folder / "prepared.json").is_file() and not number else Step("prepare")
    if newest.outcome != "Succeeded" or _is_the_end(newest):
        return Step(newest.phase, number)
    if spec is None:
        return Step("train") if newest.phase == "prepare" else LAST
    done, known = Step(newest.phase, number), {each.round: each for each in rounds_of(folder)}
    if (report := known.get(number)) is None:
        return following(spec, done) or LAST
    return following(spec, done, report.ended, asked=is_asked(report)) or LAST


def _leg_step(folder: Path, spec: DPOJobSpec, newest: Termination) -> Step:
    """The same in a sweep, where a leg that has ended has its figures."""
    if newest.phase == "prepare" and newest.outcome != "Succeeded":
        return Step("prepare")
    ended = len(legs_of(folder))
    return LAST if newest.phase == "export" else following(spec, Step("train", leg=ended) if ended else FIRST) or LAST


def _is_the_end(newest: Termination) -> bool:
    """Whether the job's own export is done: that of a round is in the round's folder."""
    of_round = (newest.export_path or "").startswith("rounds/")
    return newest.phase == "export" and newest.outcome == "Succeeded" and not of_round


def _round(folder: Path, newest: Termination | None) -> int:
    """Round of the newest words; 0 for those of the whole job."""
    if newest is None or newest.phase == "prepare" or _is_the_end(newest):
        return 0
    if newest.round is not None:
        return newest.round.round
    found = [_integer(path.name) for path in folder.glob("rounds/????") if path.is_dir()]
    if newest.export_path is not None:
        return _integer(Path(newest.export_path).parent.name)
    return max(found, default=1)


def rounds_of(folder: Path) -> list[RoundStatus]:
    """Figures of the newest rounds of a run, as far as they can be read."""
    found = []
    for path in sorted(folder.glob("rounds/????/round.json"))[-MAX_ROUND_HISTORY:]:
        with contextlib.suppress(ValidationError):
            found.append(RoundStatus.of(RoundReport.model_validate_json(_text(path))))
    return found


def _finished(status: DPOJobStatus, folder: Path) -> DPOJobStatus:
    update = {
        "state": State.COMPLETE,
        "final_metrics": None if status.progress is None else final_metrics(status.progress),
        "message": f"The run is complete; the model is in {folder / 'export'}.",
    }
    return status.model_copy(update=update)


def _failed(status: DPOJobStatus, words: Termination, now: datetime) -> DPOJobStatus:
    info = exitcodes.info(words.exit_code)
    said = quoted(words.message) if words.message else info.meaning
    message = f"{words.phase} attempt {words.attempt}, rank {words.rank}, ended with exit code {words.exit_code} ({info.reason}): {said}"
    conditions = c.with_condition((), c.FAILED, True, info.reason, message, now=now, generation=1)
    return status.model_copy(update={"state": State.FAILED, "message": message, "conditions": list(conditions)})


def _primary(said: list[Said], newest: Termination) -> Termination:
    """The rank of that attempt that failed by itself."""
    same = [each.words for each in said if (each.words.phase, each.words.attempt) == (newest.phase, newest.attempt)]
    own = [w for w in same if w.outcome == "Failed" and exitcodes.info(w.exit_code).failure_class != "secondary"]
    return own[0] if own else newest


def _history(said: list[Said], phase: names.Phase, last: int) -> list[Restart]:
    """The failed attempts of training up to one."""
    found: dict[int, Restart] = {}
    for each in said:
        words = each.words
        if phase != "train" or words.phase != "train" or words.outcome != "Failed" or words.attempt > last:
            continue
        info = exitcodes.info(words.exit_code)
        if words.attempt in found and info.failure_class == "secondary":
            continue
        found[words.attempt] = Restart(
            time=each.time,
            phase="train",
            attempt=words.attempt,
            reason=info.reason,
            counting="Uncounted" if info.failure_class == "infrastructure" else "Counted",
            step=words.progress.step if words.progress else 0,
            message=quoted(words.message, 400) if words.message else info.meaning,
        )
    return [found[attempt] for attempt in sorted(found)]


def _progress(folder: Path, phase: names.Phase, attempt: int, now: datetime) -> Any:
    """The newest figures of metrics.jsonl in the operator's form; None without any."""
    train: dict[str, Any] = {}
    held_out: dict[str, Any] = {}
    for line in _lines(folder / "metrics.jsonl"):
        if any(key.startswith("eval_") for key in line):
            held_out = line
        else:
            train = line
    if not train and not held_out:
        return None
    read = Progress(
        phase=phase,
        attempt=attempt,
        step=train.get("step", 0),
        max_steps=0,
        train=_metrics(train, ""),
        eval=_metrics(held_out, "eval_"),
    )
    written = datetime.fromtimestamp((folder / "metrics.jsonl").stat().st_mtime, UTC)
    return progress_status(read, min(written, now))


def _metrics(line: dict[str, Any], prefix: str) -> Metrics:
    values = {name: line.get(prefix + key) for name, key in _KEYS.items()}
    return Metrics(**{name: value for name, value in values.items() if isinstance(value, int | float)})


def _checkpoint(folder: Path) -> CheckpointStatus | None:
    steps = sorted((folder / "checkpoints").glob("step-????????/manifest.json"))
    if not steps:
        return None
    newest = steps[-1]
    time = datetime.fromtimestamp(newest.stat().st_mtime, UTC)
    step = _integer(newest.parent.name.removeprefix("step-"))
    return CheckpointStatus(step=step, path=newest.parent.name, digest="", attempt=0, time=time)


def _findings(folder: Path, leg: Path, said: list[Said]) -> list[FindingStatus]:
    """Those of diagnosis.json, of the round before that of the job, else of the newest words of each phase with any."""
    written = diagnosed(leg)
    written = diagnosed(folder) if written is None else written
    if written is not None:
        return worst_first([as_status(each, "prepare" if each.code in OF_PREPARE else "train") for each in written])
    newest = {
        each.words.phase: each.words.progress.findings
        for each in said
        if each.words.progress and each.words.progress.findings
    }
    return worst_first([as_status(finding, phase) for phase, findings in newest.items() for finding in findings])


def diagnosed(folder: Path) -> list[Finding] | None:
    """What diagnosis.json says about a run's learning, in its order; None without one that can be read."""
    document = _json(folder / "diagnosis.json")
    if not isinstance(document, dict) or not isinstance(document.get("findings"), list):
        return None
    findings = []
    for raw in document["findings"]:
        with contextlib.suppress(ValidationError):
            findings.append(Finding.model_validate(raw))
    return findings


def _terminations(folder: Path) -> Iterator[Said]:
    for path in folder.glob("termination-*-*-*.json"):
        words = Termination.from_text(_text(path))
        if words is not None:
            yield Said(datetime.fromtimestamp(path.stat().st_mtime, UTC).replace(microsecond=0), words)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for raw in _text(path).splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(raw)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield line


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path) or "null")
    except (ValueError, RecursionError):
        return None


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            return ""
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _integer(text: str) -> int:
    return int(text) if text.strip().isdecimal() else 0


def _spec(raw: object) -> DPOJobSpec | None:
    try:
        return DPOJobSpec.model_validate(raw)
    except ValidationError:
        return None
