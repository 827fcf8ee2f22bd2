"""How a phase ended: from an exception to an exit code, and from there to the termination message.

This module does not import torch; it recognises torch's errors through sys.modules.
"""

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
from dpo_operator.api.reports import DatasetReport, Progress, PushReport, Termination
from dpo_operator.api.text import sentences
from dpo_trainer.runtime import volume_errors
from dpo_trainer.runtime.errors import TrainerError, first_line
from dpo_trainer.runtime.stop import Stopped
from dpo_trainer.runtime.untrusted import is_panic
from dpo_trainer.runtime.volume_errors import Kind

_VOLUME = frozenset({Kind.FULL, Kind.QUOTA, Kind.FILE_TOO_LARGE, Kind.READ_ONLY, Kind.FAILING, Kind.STALE})

# Messages of gloo, NCCL and the store when the other process is gone or does not respond.
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
# What torch's allocator on CPUs says, in a plain RuntimeError.
_CPU_MEMORY = "DefaultCPUAllocator: can't allocate memory"
_PEER_LOST_TYPES = ("DistNetworkError", "DistStoreError", "DistBackendError")


def classify(error: BaseException) -> tuple[ExitCode, str]:
    """Exit code and message of an exception.

    An unexpected error gets its type and the place where it was raised.
    """
    if isinstance(error, TrainerError):
        return error.exit_code, str(error)
    if isinstance(error, ValidationError):
        return ExitCode.INVALID_CONFIGURATION, "\n".join(sentences(error))
    if is_panic(error):
        return ExitCode.INVALID_CONFIGURATION, (
            f"A library failed on its input: {first_line(error, 500)} ({_place(error)}); correct the model's or the data's files."
        )
    if isinstance(error, Stopped):
        return ExitCode.SIGTERM, f"Stopped by {error}; nothing was left half-written."
    if isinstance(error, OSError) and _is_of_volume(error):
        where = f" at {error.filename}" if error.filename else ""
        return ExitCode.VOLUME_ERROR, f"The volume failed{where}: {error.strerror}"
    if isinstance(error, MemoryError) or _CPU_MEMORY in str(error):
        return ExitCode.INTERNAL_ERROR, "Out of memory: give the pod more memory, or lower data.maxLength."
    if is_out_of_memory(error):
        return ExitCode.INTERNAL_ERROR, (
            f"Out of GPU memory: {first_line(error, 500)} Lower training.microBatchSize or data.maxLength, turn "
            "training.gradientCheckpointing on, use an adapter, or use more GPUs."
        )
    if _is_peer_lost(error):
        return ExitCode.PEER_LOST, f"Another rank went away: {first_line(error, 500)}"
    return ExitCode.INTERNAL_ERROR, f"{type(error).__name__}: {first_line(error, 500)} ({_place(error)})"


def build_termination(
    phase: Phase,
    attempt: int,
    code: int,
    message: str = "",
    *,
    rank: int = 0,
    progress: Progress | None = None,
    dataset: DatasetReport | None = None,
    export_path: str | None = None,
    pushed: PushReport | None = None,
) -> Termination:
    """Build the termination message for an exit code."""
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
        pushed=pushed,
    )


def termination_log(work: Path, phase: str, attempt: int) -> Path:
    """Path of the termination message: DPO_TERMINATION_LOG, the file that the kubelet reads, or a file in the work folder."""
    if named := os.environ.get(names.ENV_TERMINATION_LOG):
        return Path(named)
    if "KUBERNETES_SERVICE_HOST" in os.environ and Path(names.TERMINATION_LOG).is_file():
        return Path(names.TERMINATION_LOG)
    node = os.environ.get("GROUP_RANK") or os.environ.get("PET_NODE_RANK") or "0"
    return work / f"termination-{phase}-{attempt}-{node}.json"


def redact(text: str, secrets: Iterable[str]) -> str:
    """Text without secrets, because messages are shown in status, events and logs."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def may_write(path: Path, termination: Termination, *, local_rank: int, local_world_size: int) -> bool:
    """Whether a rank may write the pod's message.

    Under the launcher each rank has its own file. Under torchrun the ranks of a pod share one file, and the cause of a
    failure must stay in it: only messages of PeerLost and of a success may be overwritten.
    """
    if local_world_size == 1:
        return True
    try:
        before = Termination.from_text(path.read_text(encoding="utf-8"))
    except OSError:
        before = None
    if before is None or (before.phase, before.attempt) != (termination.phase, termination.attempt):
        return local_rank == 0 or termination.outcome == "Failed"
    return before.outcome != "Failed" or exitcodes.info(before.exit_code).failure_class == "secondary"


def write_termination(path: Path, termination: Termination) -> None:
    """Write the message. A failure is only printed, so that it does not hide the exit code."""
    try:
        # The kubelet's file is a mount and can't be renamed over, so it is written in place.
        path.write_text(termination.to_text(), encoding="utf-8")
    except OSError as error:
        print(f"The termination message could not be written to {path}: {error}", file=sys.stderr, flush=True)


def _is_of_volume(error: OSError) -> bool:
    kind = volume_errors.kind(error)
    return kind in _VOLUME or (kind is Kind.GONE and bool(error.filename))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the GPU or of this process was too small for what was asked of it."""
    if isinstance(error, MemoryError) or _CPU_MEMORY in str(error):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _is_peer_lost(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone. Only torch raises such errors as RuntimeError."""
    if type(error).__name__ in _PEER_LOST_TYPES:
        return True
    if isinstance(error, ConnectionError):
        return "torch" in sys.modules
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in text for part in _PEER_LOST_TEXTS)


def _place(error: BaseException) -> str:
    """File and line of the deepest frame of this package, or of the deepest frame if none is of this package."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "dpo_trainer" in frame.filename] or list(frames)
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "no traceback"
