"""A power cut at any moment of a save: the last committed checkpoint is there, or the one that was being committed, and it is whole."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.manifest import Parameter
from dpo_trainer.checkpoint.shard import Entry
from dpo_trainer.checkpoint.skipped import skipped
from dpo_trainer.checkpoint.store import Checkpoints
from dpo_trainer.distributed.ranks import Ranks
from tests import powercut
from tests.unit.trainer.checkpoints import loop_state

pytestmark = [pytest.mark.unit, pytest.mark.fault(31)]


class State:
    """An engine state of one parameter, all of whose elements are the number of the step."""

    def __init__(self, value: float) -> None:
        self.value = value

    def entries(self) -> list[Entry]:
        return [Entry("fp32/w", torch.float32, 16, lambda: torch.full((16,), float(self.value)))]

    def parameters(self) -> dict[str, Parameter]:
        return {"w": Parameter(shape=(16,), dtype="float32")}

    def adam_step(self) -> int:
        return 0

    def restore(self, read: Callable[[str, str, int, int], torch.Tensor], _: int) -> None:
        self.value = float(read("fp32", "w", 0, 16).mean())


def two_attempts(root: Path, mark: Callable[[tuple[str, int]], None]) -> None:
    """Saves, an amended one, one that is taken over by a newer attempt, a rollback's record, and retention. mark: called with what is safe."""

    def attempt(number: int) -> Checkpoints:
        checkpoints = Checkpoints(root, number, {}, keep_last=1, ranks=Ranks())
        checkpoints.observe = lambda step, point: mark(("step", step)) if point == "committed" else None
        checkpoints.begin()
        mark(("attempt", number))
        return checkpoints

    def save(checkpoints: Checkpoints, step: int) -> None:
        checkpoints.save(State(step), loop_state(step))  # type: ignore[arg-type]

    first = attempt(1)
    save(first, 1)
    save(first, 2)
    first.amend(loop_state(2, finished="yes"))
    first.remember_skipped([2])
    mark(("skipped", 2))
    (root / layout.temporary_name(3, 1)).mkdir()
    second = attempt(2)
    second.load(State(0))  # type: ignore[arg-type]
    save(second, 3)
    mark(("end", 0))


def test_a_power_cut_at_any_moment_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "disk"
    root.mkdir()
    recorder = powercut.recording(root, monkeypatch)
    two_attempts(root / "checkpoints", recorder.mark)
    monkeypatch.undo()
    recorder.check()

    every = list(powercut.cuts(recorder))
    assert len(every) > 100
    for cut in every:
        place = tmp_path / "after"
        place.mkdir()
        cut.write(place)
        checkpoints, state = place / "checkpoints", State(0)
        safe = {what: [number for kind, number in cut.marks if kind == what] for what in ("step", "attempt", "skipped")}

        assert layout.read_fence(checkpoints) >= max(safe["attempt"], default=0), cut
        assert skipped(checkpoints) == safe["skipped"] or not safe["skipped"], cut
        later = Checkpoints(checkpoints, 9, {}, ranks=Ranks())
        later.begin()
        restored = later.load(state)  # type: ignore[arg-type]
        last = max(safe["step"], default=0)
        assert (restored.step if restored else 0) in (last, last + 1), cut
        assert state.value == (restored.step if restored else 0), cut
        shutil.rmtree(place)
