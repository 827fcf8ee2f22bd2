"""The commit protocol without an engine: fence, commit, free space, retention."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint import writer as writer_module
from dpo_trainer.checkpoint.manifest import MANIFEST, File, Manifest, read_manifest
from dpo_trainer.checkpoint.store import Checkpoints
from dpo_trainer.checkpoint.verification import retained
from dpo_trainer.checkpoint.writer import Writer
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.files import remove
from tests.unit.trainer.checkpoints import ENTRIES, a_checkpoint, loop_state

pytestmark = pytest.mark.unit


def test_a_newer_attempt_fences_an_older_one(tmp_path: Path):
    root = tmp_path / "checkpoints"
    old = Checkpoints(root, 1, {}, ranks=Ranks())
    old.begin()
    half = root / layout.temporary_name(50, 1)
    half.mkdir()
    Checkpoints(root, 2, {}, ranks=Ranks()).begin()

    assert not half.exists()
    assert (root / "attempt").read_text() == "2\n"
    with pytest.raises(TrainerError, match="Attempt 2 has begun, so attempt 1 may no longer write") as caught:
        old.begin()
    assert caught.value.exit_code is ExitCode.PEER_LOST
    Checkpoints(root, 2, {}, ranks=Ranks()).begin()  # the same attempt may begin again


@pytest.mark.parametrize("moment", range(7))
def test_attempts_that_begin_at_one_instant_leave_the_newer_as_the_fence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
):
    """A newer attempt begins as a whole before the older one's call number `moment` of those that touch the volume."""
    calls = []

    def stalled(work: Callable) -> Callable:
        def run(*args: object) -> object:
            calls.append(1)
            if len(calls) == moment + 1:
                begun(tmp_path, 2)
            return work(*args)

        return run

    old = Writer(tmp_path, 1)
    for name in ("write_synced", "sync_folder", "remove"):
        monkeypatch.setattr(writer_module, name, stalled(getattr(writer_module, name)))
    monkeypatch.setattr(Path, "replace", stalled(Path.replace))
    with contextlib.suppress(TrainerError):
        old.begin()
    assert len(calls) > moment, "there is such a moment"
    monkeypatch.undo()

    assert layout.read_fence(tmp_path) == 2
    with pytest.raises(TrainerError, match="Attempt 2 has begun, so attempt 1 may no longer write"):
        commit_step(old, 5)
    commit_step(Writer(tmp_path, 2), 5)


def test_marks_of_attempts_do_not_pile_up(tmp_path: Path):
    for attempt in range(1, 31):
        begun(tmp_path, attempt)
    assert layout.marks(tmp_path) == list(range(21, 31))
    (tmp_path / "attempt").write_text("30\n")
    assert layout.read_fence(tmp_path) == 30


def test_an_older_attempts_writer_cannot_commit(tmp_path: Path):
    root = tmp_path / "checkpoints"
    old = Writer(root, 1)
    old.begin()
    temporary = root / layout.temporary_name(5, 1)
    old.make_folder(temporary, 10, 5)
    file = old.write_shard(temporary, ENTRIES, 5)
    manifest = Manifest(
        step=5, attempt=1, world_size=1, time=0.0, identity={}, adam_step=5, state=loop_state(5), versions={}, metrics={},
        parameters={}, files={layout.shard_name(0): File(**file)},
    )  # fmt: skip
    # A newer attempt begins between the check and the rename.
    old.observe = lambda _, point: Checkpoints(root, 2, {}).begin() if point == "fence-checked" else None
    with pytest.raises(FileNotFoundError):
        old.commit(temporary, manifest)
    assert layout.committed(root) == []

    old.observe = lambda _, __: None
    old.make_folder(temporary, 10, 5)
    old.write_shard(temporary, ENTRIES, 5)
    with pytest.raises(TrainerError, match="may no longer write"):
        old.commit(temporary, manifest)
    assert layout.committed(root) == []


def begun(root: Path, attempt: int, **settings: object) -> Writer:
    """A writer whose attempt has begun."""
    writer = Writer(root, attempt, **settings)  # type: ignore[arg-type]
    writer.begin()
    return writer


def written(writer: Writer, step: int, temporary: Path) -> Manifest:
    """Prepare a commit: the temporary folder with a shard, and the manifest."""
    writer.make_folder(temporary, 10, step)
    file = writer.write_shard(temporary, ENTRIES, step)
    return Manifest(
        step=step, attempt=writer.attempt, world_size=1, time=0.0, identity={}, adam_step=step, state=loop_state(step), versions={},
        metrics={}, parameters={}, files={layout.shard_name(0): File(**file)},
    )  # fmt: skip


def commit_step(writer: Writer, step: int) -> None:
    temporary = writer.root / layout.temporary_name(step, writer.attempt)
    writer.commit(temporary, written(writer, step, temporary))


def test_a_stalled_attempt_deletes_no_checkpoint_of_a_newer_one(tmp_path: Path):
    root, half = tmp_path / "checkpoints", tmp_path / "checkpoints" / layout.temporary_name(60, 2)

    def newer(_: int, point: str) -> None:
        if point == "committed":
            new = begun(root, 2, keep_last=4)
            for step in (30, 40, 50):
                commit_step(new, step)
            half.mkdir()

    old = begun(root, 1, keep_last=1)
    commit_step(old, 10)
    old.observe = newer
    commit_step(old, 20)

    assert [step for step, _ in layout.committed(root)] == [50, 40, 30, 20]
    assert half.exists()


def test_retention_keeps_a_newer_attempts_checkpoints_without_its_fence(tmp_path: Path):
    for step, attempt in ((1, 1), (2, 1), (3, 2)):
        a_checkpoint(tmp_path, step, attempt=attempt)
    half = tmp_path / layout.temporary_name(4, 2)
    half.mkdir()
    Writer(tmp_path, 1, keep_last=1, keep_best=0).retain(2)

    assert [step for step, _ in layout.committed(tmp_path)] == [3, 2]
    assert half.exists()


def test_a_folder_that_is_being_removed_cannot_be_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "checkpoints"
    old = begun(root, 1)
    temporary = root / layout.temporary_name(5, 1)
    manifest = written(old, 5, temporary)
    # Left by an interrupted take-over.
    (root / layout.removed_name(temporary.name) / "some").mkdir(parents=True)
    seen: list[str] = []

    def watched(path: Path) -> None:
        if path.is_dir():
            seen.append(path.name)
        remove(path)

    monkeypatch.setattr("dpo_trainer.checkpoint.writer.remove", watched)
    old.observe = lambda _, point: Checkpoints(root, 2, {}).begin() if point == "fence-checked" else None
    with pytest.raises(FileNotFoundError):
        old.commit(temporary, manifest)

    assert seen == ["step-00000005.attempt-1.removed.tmp"] * 2
    assert [name for name in os.listdir(root) if not name.startswith("attempt")] == []


def test_a_commit_replaces_a_link_of_the_same_name(tmp_path: Path):
    link = tmp_path / layout.folder_name(50)
    link.symlink_to(tmp_path / "nothing")
    commit_step(begun(tmp_path, 1), 50)

    assert [name for name in os.listdir(tmp_path) if not name.startswith("attempt")] == [link.name]
    assert read_manifest(link)[0].step == 50


def test_no_writer_follows_a_link(tmp_path: Path):
    root, victim = tmp_path / "checkpoints", tmp_path / "victim"
    root.mkdir()
    victim.write_text("7\n")
    for name in ("attempt", "attempt.1.tmp"):
        (root / name).symlink_to(victim)
    writer = begun(root, 1)
    assert layout.read_fence(root) == 1

    temporary = root / layout.temporary_name(5, 1)
    writer.make_folder(temporary, 10, 5)
    (temporary / layout.shard_name(0)).symlink_to(victim)
    with pytest.raises(FileExistsError):
        writer.write_shard(temporary, ENTRIES, 5)
    manifest = written(writer, 5, temporary)
    (temporary / MANIFEST).symlink_to(victim)
    with pytest.raises(FileExistsError):
        writer.commit(temporary, manifest)

    commit_step(writer, 6)
    (root / layout.folder_name(6) / "manifest.tmp").symlink_to(victim)
    writer.amend(6, loop_state(6, finished="yes"))
    assert read_manifest(root / layout.folder_name(6))[0].state.finished == "yes"
    assert victim.read_text() == "7\n"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_a_fence_that_is_not_a_file_is_replaced(tmp_path: Path, make: Callable[[Path], None]):
    make(tmp_path / layout.FENCE)
    begun(tmp_path, 3)

    assert layout.read_fence(tmp_path) == 3


def test_a_fence_without_a_number_names_the_repair(tmp_path: Path):
    (tmp_path / layout.FENCE).write_text("seven")
    with pytest.raises(
        TrainerError, match=r"found 'seven'\. When no older attempt of this job is running, delete that file"
    ):
        begun(tmp_path, 3)


def test_a_damaged_fence_names_the_remedy(tmp_path: Path):
    (tmp_path / layout.FENCE).write_text("")
    with pytest.raises(
        TrainerError, match=r"expected the number of an attempt, found ''. When no older attempt .* delete"
    ):
        layout.read_fence(tmp_path)


def test_too_little_free_space_names_the_need_and_changes_nothing(tmp_path: Path):
    root = tmp_path / "checkpoints"
    kept = a_checkpoint(root, 1)
    writer = Writer(root, 1)

    with pytest.raises(TrainerError, match=r"needs 9[0-9]{5}\.\d\d GiB \(with 1.00 MiB to spare\), but only") as caught:
        writer.make_folder(root / layout.temporary_name(2, 1), 10**15, 2)
    assert caught.value.exit_code is ExitCode.VOLUME_ERROR
    assert [folder for _, folder in layout.committed(root)] == [kept]
    assert layout.temporary_folders(root) == []


@given(
    losses=st.dictionaries(st.integers(1, 30), st.one_of(st.none(), st.floats(0, 1)), min_size=1),
    keep_last=st.integers(1, 4),
    keep_best=st.integers(0, 3),
    data=st.data(),
)
def test_retention(losses: dict[int, float | None], keep_last: int, keep_best: int, data: st.DataObject):
    newest = data.draw(st.sampled_from(sorted(losses)))
    kept = retained(losses, newest, keep_last, keep_best)
    usable = {step: loss for step, loss in losses.items() if step <= newest}

    assert newest in kept
    assert kept <= usable.keys()
    assert len(kept) <= keep_last + keep_best
    assert set(sorted(usable)[-keep_last:]) <= kept
    scored = [loss for loss in usable.values() if loss is not None]
    if keep_best and scored:
        assert min(scored) in [usable[step] for step in kept]


def test_a_commit_deletes_surplus_checkpoints(tmp_path: Path):
    root = tmp_path / "checkpoints"
    for step, cost in ((1, 0.9), (2, 0.4), (3, 0.8), (4, 0.7)):
        a_checkpoint(root, step, selection=cost)
    (root / layout.temporary_name(3, 1)).mkdir()
    Writer(root, 1, keep_last=1, keep_best=1).retain(4)

    assert [step for step, _ in layout.committed(root)] == [4, 2]
    assert layout.temporary_folders(root) == []


def test_refused_and_damaged_checkpoints_do_not_count_for_retention(tmp_path: Path):
    root = tmp_path / "checkpoints"
    for step in (1, 2, 3, 4, 5):
        a_checkpoint(root, step, selection=float(step))
    # 4 was refused when this attempt began, and 3 was damaged meanwhile.
    writer = Writer(root, 2, keep_last=2, keep_best=1, refused=frozenset({4}))
    os.truncate(root / layout.folder_name(3) / layout.shard_name(0), 5)
    (root / "step-00000000").symlink_to(tmp_path)
    a_checkpoint(root, 6)
    writer.retain(6)
    assert [step for step, _ in layout.committed(root)] == [6, 5, 1]

    # A refused step that is committed again counts.
    Writer(root, 2, keep_last=1, keep_best=0, refused=frozenset({6})).retain(6)
    assert [step for step, _ in layout.committed(root)] == [6]
