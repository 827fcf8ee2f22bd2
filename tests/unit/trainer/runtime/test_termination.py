"""From exceptions to exit codes, and who may write the pod's termination message."""

import errno
from pathlib import Path

import pytest
from pydantic import ValidationError

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import MAX_TERMINATION_BYTES, Termination
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.runtime import termination
from dpo_trainer.runtime.errors import bad_dataset
from dpo_trainer.runtime.stop import Stopped

pytestmark = pytest.mark.unit


class DistBackendError(RuntimeError):
    """Has the name of torch's, which is how it is recognised without importing torch."""


class PanicException(BaseException):
    """Has the name of pyo3's, which can't be imported."""


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (bad_dataset("5 of 10 rows"), ExitCode.BAD_DATASET, "5 of 10 rows"),
        (OSError(errno.ENOSPC, "No space left on device", "/work/x"), ExitCode.VOLUME_ERROR, "/work/x"),
        (OSError(errno.EROFS, "Read-only file system"), ExitCode.VOLUME_ERROR, "Read-only"),
        (OSError(errno.EIO, "Input/output error"), ExitCode.VOLUME_ERROR, "Input/output"),
        (OSError(errno.ESTALE, "Stale file handle"), ExitCode.VOLUME_ERROR, "Stale"),
        (FileNotFoundError(errno.ENOENT, "No such file"), ExitCode.INTERNAL_ERROR, "FileNotFoundError"),
        (MemoryError(), ExitCode.INTERNAL_ERROR, "Out of memory"),
        (Stopped("SIGTERM"), ExitCode.SIGTERM, "SIGTERM"),
        (DistBackendError("NCCL error"), ExitCode.PEER_LOST, "NCCL error"),
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:4711"),
            ExitCode.PEER_LOST,
            "10.0.0.7",
        ),
        (RuntimeError("shapes do not match"), ExitCode.INTERNAL_ERROR, "RuntimeError: shapes do not match"),
        (KeyError("x"), ExitCode.INTERNAL_ERROR, "KeyError"),
        (KeyboardInterrupt(), ExitCode.INTERNAL_ERROR, "KeyboardInterrupt"),
        (SystemExit("a library's last words"), ExitCode.INTERNAL_ERROR, "a library's last words"),
        (RecursionError("too deep"), ExitCode.INTERNAL_ERROR, "RecursionError: too deep"),
        (PanicException("index out of range"), ExitCode.INVALID_CONFIGURATION, "index out of range"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_exception_has_a_code_and_a_message(error: BaseException, code: ExitCode, text: str):
    found, message = termination.classify(error)

    assert found is code
    assert text in message


def test_an_unexpected_error_names_its_place():
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError as error:
        _, message = termination.classify(error)

    assert "test_termination.py:" in message


def test_a_wrong_field_is_named_with_what_was_found():
    with pytest.raises(ValidationError) as caught:
        DPOJobSpec.model_validate({"model": {"name": "m"}, "data": {"train": {"source": "d"}}, "nodes": 0})
    code, message = termination.classify(caught.value)

    assert code is ExitCode.INVALID_CONFIGURATION
    assert message == "nodes: Input should be greater than or equal to 1 (found 0)"


def test_messages_fit_the_kubelets_limit():
    message = termination.build_termination("train", 1, ExitCode.INTERNAL_ERROR, "ß\n" * 9000)

    assert len(message.to_text().encode()) <= MAX_TERMINATION_BYTES
    assert Termination.from_text(message.to_text()).reason == "InternalError"


def test_a_full_volume_does_not_hide_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    termination.write_termination(tmp_path / "no-such-folder" / "log", termination.build_termination("train", 1, 70))

    assert "could not be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "now", "local_rank", "may"),
    [
        (None, 0, 0, True),
        (None, 0, 1, False),
        (None, 70, 1, True),
        (70, 75, 0, False),
        (75, 70, 1, True),
        (70, 0, 0, False),
        (0, 70, 1, True),
    ],
)
def test_under_torchrun_a_peer_loss_does_not_overwrite_the_cause(
    tmp_path: Path, before: int | None, now: int, local_rank: int, may: bool
):
    path = tmp_path / "log"
    if before is not None:
        termination.write_termination(path, termination.build_termination("train", 2, before))
    message = termination.build_termination("train", 2, now)

    assert termination.may_write(path, message, local_rank=local_rank, local_world_size=2) is may


def test_a_message_of_an_earlier_attempt_is_overwritten(tmp_path: Path):
    path = tmp_path / "log"
    termination.write_termination(path, termination.build_termination("train", 1, 70))

    assert termination.may_write(path, termination.build_termination("train", 2, 0), local_rank=0, local_world_size=2)
    assert termination.may_write(path, termination.build_termination("train", 1, 0), local_rank=0, local_world_size=1)


def test_a_token_is_redacted_from_messages():
    assert termination.redact("401 for hf_abc at hf_abc", ["hf_abc"]) == "401 for *** at ***"


@pytest.mark.parametrize(("node", "name"), [(None, "termination-train-3-0.json"), ("1", "termination-train-3-1.json")])
def test_outside_a_pod_the_message_goes_to_the_work_folder(
    monkeypatch: pytest.MonkeyPatch, node: str | None, name: str
):
    for variable in ("DPO_TERMINATION_LOG", "KUBERNETES_SERVICE_HOST", "GROUP_RANK", "PET_NODE_RANK"):
        monkeypatch.delenv(variable, raising=False)
    if node:
        monkeypatch.setenv("PET_NODE_RANK", node)

    assert termination.termination_log(Path("/w"), "train", 3) == Path("/w") / name
