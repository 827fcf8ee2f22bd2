"""How a phase ended: from an exception to an exit code, and from there to the termination message.

torch is never imported here: its errors are recognised by the modules that are already loaded.
"""

import errno
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from dpo_operator.api import exitcodes, names
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.names import Phase
from dpo_operator.api.reports import DatasetReport, Progress, Termination
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.stop import Stopped

_VOLUME_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG})
# Sockets have these errors, too; those of a volume name a file.
_GONE_ERRNOS = frozenset({errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT})

# What gloo, NCCL and the store say when the process at the other end is gone or no longer answers.
_PEER_LOST_TEXTS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection was likely closed",
    "connection refused",
    "broken pipe",
    "no route to host",
    "socket timeout",
    "timed out waiting",
    "application timeout caused pair closure",
    "remote process exited",
    "nccl communicator was aborted",
    "watchdog caught collective operation timeout",
)
_PEER_LOST_TYPES = ("DistNetworkError", "DistStoreError", "DistBackendError")


def classify(error: BaseException) -> tuple[ExitCode, str]:
    """Exit code and message of an exception.

    The message of a known failure is its own; an unexpected one is named with its type and place.
    """
    if isinstance(error, TrainerError):
        return error.exit_code, str(error)
    if isinstance(error, ValidationError):
        return ExitCode.INVALID_CONFIGURATION, "\n".join(sentences(error))
    if isinstance(error, Stopped):
        return ExitCode.SIGTERM, f"Stopped by {error}; nothing was left half-written."
    if isinstance(error, OSError) and (
        error.errno in _VOLUME_ERRNOS or (error.filename and error.errno in _GONE_ERRNOS)
    ):
        where = f" at {error.filename}" if error.filename else ""
        return ExitCode.VOLUME_ERROR, f"The volume failed{where}: {error.strerror}"
    if isinstance(error, MemoryError):
        return ExitCode.INTERNAL_ERROR, "Out of memory: give the pod more memory, or lower data.maxLength."
    if _is_cuda_out_of_memory(error):
        return ExitCode.INTERNAL_ERROR, (
            f"Out of GPU memory: {_first_line(error)} Lower training.microBatchSize or data.maxLength, turn "
            "training.gradientCheckpointing on, use an adapter, or use more GPUs."
        )
    if _is_peer_lost(error):
        return ExitCode.PEER_LOST, f"Another rank went away: {_first_line(error)}"
    return ExitCode.INTERNAL_ERROR, f"{type(error).__name__}: {_first_line(error)} ({_place(error)})"


def sentences(error: ValidationError) -> list[str]:
    """One line for each problem of a job file: the field's path, what was expected, what was found."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        found = "" if problem["type"] in ("missing", "extra_forbidden") else f" (found {problem['input']!r})"
        lines.append(f"{where}: {problem['msg']}{found}")
    return lines


def termination(
    phase: Phase,
    attempt: int,
    code: int,
    message: str = "",
    *,
    rank: int = 0,
    progress: Progress | None = None,
    dataset: DatasetReport | None = None,
    export_path: str | None = None,
) -> Termination:
    """The container's last words for an exit code."""
    status: Literal["Succeeded", "Failed", "Stopped"] = "Failed"
    if code == ExitCode.OK:
        status = "Succeeded"
    elif code == ExitCode.SIGTERM:
        status = "Stopped"
    return Termination(
        phase=phase,
        attempt=attempt,
        outcome=status,
        exit_code=int(code),
        reason="" if code == ExitCode.OK else exitcodes.info(code).reason,
        message=message,
        rank=rank,
        progress=progress,
        dataset=dataset,
        export_path=export_path,
    )


def termination_log(work: Path, phase: str, attempt: int) -> Path:
    """Where the termination message goes: DPO_TERMINATION_LOG, the pod's own file, or a file in the work folder."""
    if named := os.environ.get(names.ENV_TERMINATION_LOG):
        return Path(named)
    if "KUBERNETES_SERVICE_HOST" in os.environ and Path(names.TERMINATION_LOG).is_file():
        return Path(names.TERMINATION_LOG)
    node = os.environ.get("GROUP_RANK") or os.environ.get("PET_NODE_RANK") or "0"
    return work / f"termination-{phase}-{attempt}-{node}.json"


def redact(text: str, secrets: Iterable[str]) -> str:
    """Text without secrets: a message travels into status, events and logs."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def may_write(path: Path, words: Termination, *, local_rank: int, local_world_size: int) -> bool:
    """Whether a rank may write the pod's message.

    Under the launcher each rank has a file of its own. Under torchrun the ranks of a pod share one, and a cause must not
    be covered by its consequence: what only says that a peer was lost, or that all went well, gives way.
    """
    if local_world_size == 1:
        return True
    try:
        before = Termination.from_text(path.read_text(encoding="utf-8"))
    except OSError:
        before = None
    if before is None or (before.phase, before.attempt) != (words.phase, words.attempt):
        return local_rank == 0 or words.outcome == "Failed"
    return before.outcome != "Failed" or exitcodes.info(before.exit_code).failure_class == "secondary"


def write_termination(path: Path, words: Termination) -> None:
    """Write the message; a volume that can't be written to must not hide the exit code, so that is only said."""
    try:
        # The kubelet's file is a mount and can't be renamed over, so it is written in place.
        path.write_text(words.to_text(), encoding="utf-8")
    except OSError as error:
        print(f"The termination message could not be written to {path}: {error}", file=sys.stderr, flush=True)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:500] if text else ""


def _is_cuda_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _is_peer_lost(error: BaseException) -> bool:
    """Whether a collective failed because of another process. Only torch raises such errors as RuntimeError."""
    if type(error).__name__ in _PEER_LOST_TYPES:
        return True
    if isinstance(error, ConnectionError):
        return "torch" in sys.modules
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in text for part in _PEER_LOST_TEXTS)


def _place(error: BaseException) -> str:
    """File and line of the deepest frame of this package, else of the deepest frame at all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "dpo_trainer" in frame.filename] or list(frames)
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "no traceback"
