"""Exit codes of the trainer and what the operator does about each: one table for trainer, operator and docs.

Codes follow sysexits.h where it has a fitting one, so that a person who knows it reads them at once.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

FailureClass = Literal["configuration", "infrastructure", "counted", "secondary"]
"""configuration: the job can't work as written, so it fails at once.
infrastructure: not the job's fault; restarts and does not count.
counted: restarts and counts against failurePolicy.maxRestarts.
secondary: a rank that stopped because another one did; the other rank's reason is reported."""


class ExitCode(IntEnum):
    """Exit status of a trainer process."""

    OK = 0
    UNSUPPORTED = 64
    BAD_DATASET = 65
    INPUT_NOT_FOUND = 66
    SOURCE_UNAVAILABLE = 69
    INTERNAL_ERROR = 70
    VOLUME_ERROR = 74
    PEER_LOST = 75
    NON_FINITE = 76
    ACCESS_DENIED = 77
    INVALID_CONFIGURATION = 78
    BAD_EXPORT = 79
    NO_ACCELERATOR = 80
    STOPPED_BY_DIAGNOSIS = 81
    DRIVER_TOO_OLD = 82
    SIGKILL = 137
    SIGTERM = 143


@dataclass(frozen=True)
class ExitCodeInfo:
    """A row of the table.

    reason: CamelCase, used in conditions and events.
    meaning: a sentence for the docs and for messages when the trainer left none.
    """

    reason: str
    failure_class: FailureClass
    meaning: str


TABLE: dict[ExitCode, ExitCodeInfo] = {
    ExitCode.UNSUPPORTED: ExitCodeInfo(
        "Unsupported", "configuration", "The job asks for something that this trainer does not implement."
    ),
    ExitCode.BAD_DATASET: ExitCodeInfo(
        "BadDataset", "configuration", "Too many rows are unusable, or none is left after the filters."
    ),
    ExitCode.INPUT_NOT_FOUND: ExitCodeInfo(
        "InputNotFound", "configuration", "The model, the dataset or a file of them does not exist."
    ),
    ExitCode.SOURCE_UNAVAILABLE: ExitCodeInfo(
        "SourceUnavailable", "counted", "The hub or the object store could not be reached."
    ),
    ExitCode.INTERNAL_ERROR: ExitCodeInfo(
        "InternalError", "counted", "An unexpected exception; the traceback is in the pod's log."
    ),
    ExitCode.VOLUME_ERROR: ExitCodeInfo("VolumeError", "counted", "The work volume is full, read-only or failing."),
    ExitCode.PEER_LOST: ExitCodeInfo("PeerLost", "secondary", "Another rank went away during a collective operation."),
    ExitCode.NON_FINITE: ExitCodeInfo(
        "NonFiniteLoss", "configuration", "The loss or the gradient stayed NaN or infinite."
    ),
    ExitCode.ACCESS_DENIED: ExitCodeInfo(
        "AccessDenied", "configuration", "A hub or an object store refused the token or key, or the model is gated."
    ),
    ExitCode.INVALID_CONFIGURATION: ExitCodeInfo(
        "InvalidConfiguration",
        "configuration",
        "The job's settings do not fit the model, the data or each other.",
    ),
    ExitCode.BAD_EXPORT: ExitCodeInfo(
        "BadExport", "configuration", "The exported weights do not reproduce the trained policy."
    ),
    ExitCode.NO_ACCELERATOR: ExitCodeInfo(
        "NoAccelerator", "counted", "The container was given GPUs, but CUDA can't use them."
    ),
    ExitCode.STOPPED_BY_DIAGNOSIS: ExitCodeInfo(
        "StoppedByDiagnosis",
        "configuration",
        "A finding of diagnosis.stopOn ended the training; the state was saved first.",
    ),
    ExitCode.DRIVER_TOO_OLD: ExitCodeInfo(
        "DriverTooOld", "configuration", "A node's NVIDIA driver is older than the trainer's CUDA needs."
    ),
    ExitCode.SIGKILL: ExitCodeInfo("Killed", "counted", "Killed by SIGKILL: out of memory, or by the node."),
    ExitCode.SIGTERM: ExitCodeInfo(
        "Terminated",
        "infrastructure",
        "Asked to stop (drain, preemption); the state was saved first. Counted if there was no known stop request and no save.",
    ),
}

UNKNOWN = ExitCodeInfo("ProcessFailed", "counted", "The process ended with an exit code that the trainer does not use.")


# SIGABRT and SIGSEGV as shells report them. NCCL's watchdog aborts the process, from a thread of its own, when another rank is gone or
# does not come to a collective; the abort may crash on its way.
ABORTS = frozenset({134, 139})


def echo(code: int) -> int:
    """How likely a rank's end only follows from another rank's: 0 its own, 1 aborted or stopped, 2 lost a peer. The least of a gang is its cause."""
    return 2 if info(code).failure_class == "secondary" else int(code in ABORTS or code == ExitCode.SIGTERM)


def info(code: int) -> ExitCodeInfo:
    """Row for an exit code; a code outside the table is a counted failure."""
    try:
        return TABLE[ExitCode(code)]
    except (KeyError, ValueError):
        return UNKNOWN
