"""Saves in the foreground and in the background: errors, heartbeats, order."""

import os
import resource
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import RecordedCheckpoints
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.manifest import Parameter, read_manifest
from dpo_trainer.checkpoint.shard import Entry
from dpo_trainer.checkpoint.store import Checkpoints
from dpo_trainer.checkpoint.trust import Trust
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.runtime.errors import TrainerError
from tests.unit.trainer.checkpoints import a_checkpoint, entry, loop_state

pytestmark = pytest.mark.unit


class State:
    """An engine state with a single tensor, which can be changed."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def entries(self) -> list[Entry]:
        return [entry("fp32/w", self.values)]

    def parameters(self) -> dict[str, Parameter]:
        return {"w": Parameter(shape=tuple(self.values.shape), dtype="float32")}

    def adam_step(self) -> int:
        return 1


def save(checkpoints: Checkpoints, state: State, step: int, **loop: Any) -> None:
    checkpoints.save(state, loop_state(step, **loop))  # type: ignore[arg-type]


def save_and_wait(checkpoints: Checkpoints, state: State, step: int) -> None:
    save(checkpoints, state, step)
    checkpoints.wait()


def test_a_rollback_trusts_the_checkpoint_that_was_resumed_from(tmp_path: Path):
    """An earlier attempt died before reporting step 5. This attempt resumes from it, commits, and rolls back."""
    state = State(torch.arange(8.0))
    state.restore = lambda _read, _adam_step: None  # type: ignore[attr-defined]
    state.adam_step = lambda: 0  # type: ignore[method-assign]
    save(Checkpoints(tmp_path, 1, {}), state, 5)
    trust = Trust(RecordedCheckpoints(last_attempt=1))
    later = Checkpoints(tmp_path, 2, {}, trust=trust)
    first = later.load(state)  # type: ignore[arg-type]
    assert first is not None
    assert "was not recorded" in first.doubt
    save(later, state, 6)
    os.truncate(tmp_path / layout.folder_name(6) / layout.shard_name(0), 5)

    back = later.load(state)  # type: ignore[arg-type]
    assert back is not None
    assert (back.step, back.doubt, len(back.refused)) == (5, "", 1)


BOTH = pytest.mark.parametrize("background", [None, Ranks()], ids=["foreground", "background"])


@BOTH
def test_a_failed_write_raises_on_every_rank_and_is_cleaned_up(tmp_path: Path, background: Ranks | None):
    """A real write error in the middle of a shard: a limit on the size of files (EFBIG)."""
    import signal

    root = tmp_path / "checkpoints"
    kept = a_checkpoint(root, 1)
    checkpoints = Checkpoints(root, 1, {}, ranks=Ranks(), background=background)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(TrainerError, match="File too large") as caught:
            save_and_wait(checkpoints, State(torch.zeros(100_000)), 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)

    assert caught.value.exit_code is ExitCode.VOLUME_ERROR
    assert [folder for _, folder in layout.committed(root)] == [kept]
    assert os.listdir(root) == [kept.name]


@BOTH
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_numbers_are_never_committed(tmp_path: Path, background: Ranks | None, wrong: float):
    checkpoints = Checkpoints(tmp_path, 1, {}, ranks=Ranks(), background=background)
    values = torch.zeros(1000)
    values[777] = wrong
    with pytest.raises(TrainerError, match="fp32/w: expected finite numbers") as caught:
        save_and_wait(checkpoints, State(values), 2)

    assert caught.value.exit_code is ExitCode.NON_FINITE
    assert os.listdir(tmp_path) == []


def test_a_background_save_holds_the_state_at_its_start(tmp_path: Path):
    """The thread is held at the first file while the loop changes everything that it handed over."""
    held, loop, committed = threading.Event(), {"evaluations": [(5, 1.0)]}, []

    def observe(step: int, point: str) -> None:
        if (step, point) == (5, "shard-opened"):
            assert held.wait(60)

    checkpoints = Checkpoints(
        tmp_path,
        1,
        {},
        ranks=Ranks(),
        background=Ranks(),
        observe=observe,
        on_commit=lambda ref, _: committed.append(ref.step),
    )
    state = State(torch.arange(1000.0))
    save(checkpoints, state, 5, **loop)
    state.values.zero_()
    loop["evaluations"].append((6, 2.0))
    assert (layout.committed(tmp_path), committed) == ([], [])
    held.set()
    # The next save waits for the older one before it takes the buffer.
    save(checkpoints, state, 6)
    assert committed == [5]
    checkpoints.wait()

    found = {step: load_file(folder / layout.shard_name(0))["fp32/w"] for step, folder in layout.committed(tmp_path)}
    assert found[5].equal(torch.arange(1000.0))
    assert found[6].equal(torch.zeros(1000))
    assert read_manifest(tmp_path / layout.folder_name(5))[0].state.evaluations == ((5, 1.0),)
    assert committed == [5, 6]


def test_a_background_save_is_a_heartbeat_only_while_the_loop_waits(tmp_path: Path):
    opened, held, signs = threading.Event(), threading.Event(), []

    def observe(_step: int, point: str) -> None:
        if point == "shard-half":
            opened.set()
            assert held.wait(60)

    def alive() -> None:
        signs.append(threading.current_thread().name)

    checkpoints = Checkpoints(tmp_path, 1, {}, ranks=Ranks(), background=Ranks(), observe=observe, alive=alive)
    state = State(torch.zeros(1000))
    state.restore = lambda read, _adam_step: read("fp32", "w", 0, 1000)  # type: ignore[attr-defined]
    state.adam_step = lambda: 0  # type: ignore[method-assign]
    save(checkpoints, state, 5)
    assert opened.wait(60)
    assert signs == []  # its header is written, and the loop goes its own way
    threading.Timer(0.2, held.set).start()
    checkpoints.wait()
    assert set(signs) == {"checkpoint"}

    # The loop always waits for foreground saves and loads.
    signs.clear()
    save(Checkpoints(tmp_path, 1, {}, ranks=Ranks(), alive=alive), state, 6)
    saved = len(signs)
    # One chunk of its file, and one tensor.
    assert checkpoints.load(state) is not None  # type: ignore[arg-type]
    assert set(signs) == {"MainThread"}
    assert len(signs) - 2 == saved > 0


def test_a_background_failure_is_known_before_wait_is_called(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "missing", 1, {}, ranks=Ranks(), background=Ranks())
    save(checkpoints, State(torch.zeros(10)), 5)
    deadline = time.monotonic() + 60
    while not checkpoints.failed:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    checkpoints.drain(1.0)  # a run that ends for another reason keeps that reason
    assert not checkpoints.failed


def test_metrics_are_on_disk_before_the_commit(tmp_path: Path):
    seen: list[list[int]] = []
    checkpoints = Checkpoints(
        tmp_path, 1, {}, ranks=Ranks(), before_commit=lambda: seen.append([s for s, _ in layout.committed(tmp_path)])
    )
    save(checkpoints, State(torch.zeros(10)), 5)

    assert seen == [[]]
    assert [step for step, _ in layout.committed(tmp_path)] == [5]
