"""A volume that is full, read-only, gone or hung: error messages, and the checkpoints that remain."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import CheckpointRecord, RecordedCheckpoints
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.manifest import Parameter, read_manifest
from dpo_trainer.checkpoint.shard import Entry
from dpo_trainer.checkpoint.store import Checkpoints
from dpo_trainer.checkpoint.trust import Trust
from dpo_trainer.checkpoint.verification import verify_shards
from dpo_trainer.checkpoint.volume import describe, readable
from dpo_trainer.checkpoint.writer import Writer
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.runtime.errors import TrainerError
from tests.filesystems import fill, kind, server_is_gone, set_writable, small_file_system, unmount
from tests.unit.trainer.checkpoints import loop_state

pytestmark = [pytest.mark.unit, pytest.mark.fault(27, 28)]

PARTS, ELEMENTS = 4, 400_000
NEEDED = readable(PARTS * ELEMENTS * 4 + 5000)[:3]


class State:
    """State of a rank: PARTS parameters, all set to the same number."""

    def __init__(self, value: float) -> None:
        self.value = value

    def entries(self) -> list[Entry]:
        def entry(name: str) -> Entry:
            return Entry(f"fp32/{name}", torch.float32, ELEMENTS, lambda: torch.full((ELEMENTS,), float(self.value)))

        return [entry(name) for name in self.parameters()]

    def parameters(self) -> dict[str, Parameter]:
        return {f"w{i}": Parameter(shape=(ELEMENTS,), dtype="float32") for i in range(PARTS)}

    def adam_step(self) -> int:
        return 0

    def restore(self, read: Callable[[str, str, int, int], torch.Tensor], _: int) -> None:
        self.value = float(read("fp32", "w0", 0, ELEMENTS).mean())


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, 40) as mounted:
        yield mounted


@pytest.fixture
def writer(volume: Path) -> Checkpoints:
    """Writer of attempt 1, with a committed checkpoint of step 1 whose weights are 1."""
    writer = Checkpoints(volume / "checkpoints", 1, {}, ranks=Ranks())
    writer.begin()
    save(writer, 1)
    return writer


def save(writer: Checkpoints, step: int) -> None:
    writer.save(State(step), loop_state(step))  # type: ignore[arg-type]


def failed_save(writer: Checkpoints, step: int, at: str, do: Callable[[], object]) -> TrainerError:
    """The error of a save when the volume fails at one of its sub-steps."""
    writer.observe = lambda *reached: do() if reached[-1] == at else None
    with pytest.raises(TrainerError) as caught:
        save(writer, step)
    writer.observe = lambda *_: None
    return caught.value


def assert_only_step_1(root: Path) -> None:
    """Assert that the first checkpoint is unchanged and alone."""
    assert [name for name in os.listdir(root) if not name.startswith("attempt")] == ["step-00000001"]
    folder = root / "step-00000001"
    manifest, _ = read_manifest(folder)
    verify_shards(folder, manifest, [0], kinds=["fp32"])


@pytest.mark.parametrize("at", ["folder-made", "shard-opened", "shard-half", "shard-synced", "digests-gathered"])
def test_another_writer_fills_the_volume_during_a_save(volume: Path, writer: Checkpoints, at: str):
    others: list[Path] = []
    error = failed_save(writer, 2, at, lambda: others.append(fill(volume)))

    assert error.exit_code is ExitCode.VOLUME_ERROR
    assert f"Saving a checkpoint in {writer.root} failed: No space left on device. A checkpoint needs {NEEDED}" in str(
        error
    )
    assert "and now " in str(error)
    assert "enlarge the volume" in str(error)
    assert_only_step_1(writer.root)

    others[0].unlink()
    save(writer, 2)
    assert [step for step, _ in layout.committed(writer.root)] == [2, 1]


def test_a_save_that_does_not_fit_is_not_started(volume: Path, writer: Checkpoints):
    fill(volume)
    with pytest.raises(
        TrainerError,
        match=rf"A checkpoint needs 7.* MiB \(with 1.00 MiB to spare\), but only .* are free at {writer.root}: enlarge",
    ):
        save(writer, 2)
    assert_only_step_1(writer.root)


def test_surplus_checkpoints_are_deleted_first_if_space_is_short(volume: Path, writer: Checkpoints):
    for step in (2, 3, 4):
        writer.keep_last = step
        save(writer, step)
    # A later attempt that resumed from step 3, because the newest was refused; keepLast is lower now.
    fill(volume)
    later = Writer(writer.root, 2, keep_last=2, refused=frozenset({4}))
    later.make_folder(later.root / layout.temporary_name(5, 2), PARTS * ELEMENTS * 4, 5)
    assert [step for step, _ in layout.committed(later.root)] == [3, 2]
    # Checkpoints to keep stay even if the save does not fit.
    with pytest.raises(TrainerError, match=r"to spare\), but only"):
        later.make_folder(later.root / layout.temporary_name(6, 2), 1 << 40, 6)
    assert [step for step, _ in layout.committed(later.root)] == [3, 2]


@pytest.mark.parametrize("at", ["space-checked", "folder-made", "digests-gathered"])
def test_a_volume_becomes_read_only_during_a_save(volume: Path, writer: Checkpoints, at: str):
    error = failed_save(writer, 2, at, lambda: set_writable(volume, False))

    assert error.exit_code is ExitCode.VOLUME_ERROR
    assert f"Saving a checkpoint in {writer.root} failed: Read-only file system." in str(error)
    assert "The volume is mounted read-only" in str(error)
    # Reading still works.
    state = State(0)
    restored = Checkpoints(writer.root, 2, {}, ranks=Ranks()).load(state)  # type: ignore[arg-type]
    assert restored is not None
    assert (restored.step, state.value) == (1, 1)

    # The next attempt removes the folder that could not be removed.
    set_writable(volume, True)
    later = Checkpoints(writer.root, 2, {}, ranks=Ranks())
    later.begin()
    assert_only_step_1(writer.root)


def test_an_attempt_does_not_begin_on_a_read_only_volume(volume: Path, writer: Checkpoints):
    set_writable(volume, False)
    with pytest.raises(TrainerError, match="Read-only file system") as caught:
        Checkpoints(writer.root, 2, {}, ranks=Ranks()).begin()
    assert caught.value.exit_code is ExitCode.VOLUME_ERROR


def test_a_volume_goes_away_during_a_save(volume: Path, writer: Checkpoints):
    error = failed_save(writer, 2, "folder-made", lambda: unmount(volume))

    assert error.exit_code is ExitCode.VOLUME_ERROR
    assert f"Saving a checkpoint in {writer.root} failed: No such file or directory." in str(error)
    assert "went away. Is it still mounted" in str(error)

    # A job with a committed checkpoint never starts at step 0 on another volume.
    known = RecordedCheckpoints(last_attempt=1, checkpoints=[CheckpointRecord(step=1, attempt=1, digest="ab" * 32)])
    with pytest.raises(TrainerError, match="expected the checkpoint of step 1, which attempt 1 committed, found none"):
        Checkpoints(writer.root, 2, {}, ranks=Ranks(), trust=Trust(known)).load(State(0))  # type: ignore[arg-type]


def test_the_server_of_a_volume_goes_away(volume: Path, writer: Checkpoints):
    with ExitStack() as stack:
        error = failed_save(writer, 2, "folder-made", lambda: stack.enter_context(server_is_gone(writer.root)))
        assert error.exit_code is ExitCode.VOLUME_ERROR
        assert "Transport endpoint is not connected" in str(error)
        assert "does its server respond?" in str(error)
        with pytest.raises(TrainerError, match="Transport endpoint is not connected"):
            Checkpoints(writer.root, 2, {}, ranks=Ranks()).begin()


def test_an_unreadable_newest_checkpoint_is_not_replaced_by_an_older_one(volume: Path, writer: Checkpoints):
    save(writer, 2)
    with (
        server_is_gone(writer.root / "step-00000002"),
        pytest.raises(TrainerError, match="can't be read: Transport endpoint is not connected") as caught,
    ):
        Checkpoints(writer.root, 2, {}, ranks=Ranks()).load(State(0))  # type: ignore[arg-type]
    assert caught.value.exit_code is ExitCode.VOLUME_ERROR

    # An unreadable checkpoint is not deleted either.
    writer.keep_last = 1
    with server_is_gone(writer.root / "step-00000002"):
        save(writer, 3)
    assert [step for step, _ in layout.committed(writer.root)] == [3, 2, 1]


def test_these_are_real_file_systems(volume: Path):
    assert kind(volume) in ("ext4", "tmpfs")
    assert os.statvfs(volume).f_blocks * os.statvfs(volume).f_frsize <= 40 << 20


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (
            errno.EDQUOT,
            "A checkpoint needs 5.00 MiB, and now 1.00 MiB are free there: raise the quota, delete older checkpoints, or with `dpo run` lower",
        ),
        (errno.EIO, "The storage behind the volume is failing or full"),
        (errno.ESTALE, "went away"),
        (errno.ETIMEDOUT, "went away"),
        (errno.EACCES, "may not write there"),
        (errno.ENAMETOOLONG, "The checkpoints that were committed before are untouched"),
    ],
)
def test_every_volume_error_names_the_remedy(number: int, words: str):
    message = describe(OSError(number, os.strerror(number)), Path("/work/checkpoints"), 5 << 20, 1 << 20)
    assert message.startswith(f"Saving a checkpoint in /work/checkpoints failed: {os.strerror(number)}")
    assert words in message


def test_sizes_are_readable():
    assert [readable(n) for n in (0, 1023, 2048, 3.4 * 2**20, 5 * 2**40)] == [
        "0 B", "1023 B", "2.00 KiB", "3.40 MiB", "5120.00 GiB",
    ]  # fmt: skip
