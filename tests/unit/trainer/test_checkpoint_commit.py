"""The parts of the checkpoint protocol that need no engine: shards, manifest, fence, space, retention."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.identity import differences, identity
from dpo_trainer.checkpoint.layout import BadCheckpoint, File, Manifest, Parameter
from dpo_trainer.checkpoint.ranks import Ranks
from dpo_trainer.checkpoint.shard import Entry, ShardReader, file_size, write_shard
from dpo_trainer.checkpoint.slices import partition, pieces
from dpo_trainer.checkpoint.store import Checkpoints, retained
from dpo_trainer.errors import TrainerError
from dpo_trainer.files import write_synced

pytestmark = pytest.mark.unit


def entry(name: str, values: torch.Tensor) -> Entry:
    return Entry(name, values.dtype, values.numel(), lambda: values)


ENTRIES = [
    entry("fp32/w", torch.arange(7.0)),
    entry("fp32/b", torch.ones(1)),
    entry("rng/cpu", torch.arange(5, dtype=torch.uint8)),
]


def a_checkpoint(root: Path, step: int, *, selection: float | None = None, attempt: int = 1) -> Path:
    """A committed checkpoint of one rank."""
    folder = root / layout.folder_name(step)
    folder.mkdir(parents=True)
    file = write_shard(folder / layout.shard_name(0), ENTRIES, lambda _: None)
    manifest = Manifest(
        step=step, attempt=attempt, world_size=1, time=0.0, identity={}, adam_step=step, state={}, versions={},
        parameters={"w": Parameter(shape=(7,), dtype="float32")}, files={layout.shard_name(0): file},
        metrics={"selection": selection},
    )  # fmt: skip
    write_synced(folder / layout.MANIFEST, manifest.to_bytes())
    return folder


def test_a_shard_is_plain_safetensors(tmp_path: Path):
    path = tmp_path / "rank-00000.safetensors"
    file = write_shard(path, ENTRIES, lambda _: None)
    found = load_file(path)

    assert {name: tensor.tolist() for name, tensor in found.items()} == {e.name: e.read().tolist() for e in ENTRIES}
    assert file.size == path.stat().st_size == file_size(ENTRIES)
    layout.verify(tmp_path, path.name, file)
    assert ShardReader(path).slice("fp32/w", 2, 5).tolist() == [2.0, 3.0, 4.0]
    with pytest.raises(BadCheckpoint, match="fp32/w: expected elements 2 to 8"):
        ShardReader(path).slice("fp32/w", 2, 8)


def test_an_empty_shard_is_a_shard(tmp_path: Path):
    path = tmp_path / "rank-00003.safetensors"
    write_shard(path, [], lambda _: None)

    assert load_file(path) == {}


def test_every_kind_of_damage_to_a_shard_is_found(tmp_path: Path):
    folder = a_checkpoint(tmp_path, 1)
    manifest, _ = layout.read_manifest(folder)
    [(name, file)] = manifest.files.items()
    content = (folder / name).read_bytes()
    for position in range(len(content)):
        (folder / name).write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        with pytest.raises(BadCheckpoint, match="SHA-256"):
            layout.verify(folder, name, file)
    for length in (0, 1, len(content) - 1):
        (folder / name).write_bytes(content[:length])
        with pytest.raises(BadCheckpoint, match=f"found {length}"):
            layout.verify(folder, name, file)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "format"),
        ({"step": 9}, "is of step 9"),
        ({"files": {}}, "expected 1 shards"),
        ({"files": {"../../etc/passwd": {"size": 1, "sha256": "0" * 64}}}, "expected 1 shards"),
        ({"adam_step": -1}, "adam_step"),
        ({"more": 1}, "more"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(tmp_path: Path, change: dict, reason: str):
    folder = a_checkpoint(tmp_path, 3)
    document = json.loads((folder / layout.MANIFEST).read_text())
    (folder / layout.MANIFEST).write_text(json.dumps({**document, **change}))

    with pytest.raises(BadCheckpoint, match=reason):
        layout.read_manifest(folder)


def test_links_are_not_followed(tmp_path: Path):
    folder = a_checkpoint(tmp_path / "elsewhere", 1)
    root = tmp_path / "checkpoints"
    root.mkdir()
    (root / folder.name).symlink_to(folder)
    [(_, link)] = layout.committed(root)
    with pytest.raises(BadCheckpoint, match="is a link or a file"):
        layout.read_manifest(link)

    real = a_checkpoint(root, 2)
    (real / layout.MANIFEST).rename(tmp_path / "manifest.json")
    (real / layout.MANIFEST).symlink_to(tmp_path / "manifest.json")
    with pytest.raises(BadCheckpoint, match="symbolic link"):
        layout.read_manifest(real)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_does_not_block_a_reader(tmp_path: Path, make: Callable[[Path], None]):
    folder = a_checkpoint(tmp_path, 1)
    name = layout.shard_name(0)
    (folder / name).unlink()
    make(folder / name)
    (folder / layout.MANIFEST).unlink()
    make(folder / layout.MANIFEST)

    with pytest.raises(BadCheckpoint, match="is not a regular file"):
        layout.verify(folder, name, File(size=1, sha256="0" * 64))
    with pytest.raises(BadCheckpoint, match="is not a regular file"):
        layout.read_manifest(folder)


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


def test_an_older_attempts_writer_cannot_commit(tmp_path: Path):
    root = tmp_path / "checkpoints"
    old = Checkpoints(root, 1, {}, ranks=Ranks())
    old.begin()
    temporary = root / layout.temporary_name(5, 1)
    old._make_room(temporary, 10)
    file = old._write_shard(temporary, ENTRIES)
    manifest = Manifest(
        step=5, attempt=1, world_size=1, time=0.0, identity={}, adam_step=5, state={}, versions={}, metrics={},
        parameters={}, files={layout.shard_name(0): File(**file)},
    )  # fmt: skip
    # Between the check and the rename a newer attempt begins: the fence's second half.
    old.observe = lambda point: Checkpoints(root, 2, {}).begin() if point == "fence-checked" else None
    with pytest.raises(FileNotFoundError):
        old._commit(temporary, manifest)
    assert layout.committed(root) == []

    old.observe = lambda _: None
    old._make_room(temporary, 10)
    old._write_shard(temporary, ENTRIES)
    with pytest.raises(TrainerError, match="may no longer write"):
        old._commit(temporary, manifest)
    assert layout.committed(root) == []


def test_too_little_room_says_how_much_is_needed_and_touches_nothing(tmp_path: Path):
    root = tmp_path / "checkpoints"
    kept = a_checkpoint(root, 1)
    writer = Checkpoints(root, 1, {}, ranks=Ranks())

    with pytest.raises(TrainerError, match=r"needs 9[0-9]{5}\.\d\d GiB, but only") as caught:
        writer._make_room(root / layout.temporary_name(2, 1), 10**15)
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


def test_the_commit_removes_what_need_not_stay(tmp_path: Path):
    root = tmp_path / "checkpoints"
    for step, cost in ((1, 0.9), (2, 0.4), (3, 0.8), (4, 0.7)):
        a_checkpoint(root, step, selection=cost)
    (root / layout.temporary_name(3, 1)).mkdir()
    Checkpoints(root, 1, {}, keep_last=1, keep_best=1)._retain(4)

    assert [step for step, _ in layout.committed(root)] == [4, 2]
    assert layout.temporary_folders(root) == []


def test_what_a_load_would_refuse_takes_no_place_of_what_it_would_use(tmp_path: Path):
    root = tmp_path / "checkpoints"
    for step in (1, 2, 3, 4, 5):
        a_checkpoint(root, step, selection=float(step))
    writer = Checkpoints(root, 2, {}, keep_last=2, keep_best=1)
    # 5 is later than what is committed now, 4 was refused when this attempt began, and 3 was damaged meanwhile.
    writer._refused = frozenset({4})
    os.truncate(root / layout.folder_name(3) / layout.shard_name(0), 5)
    (root / "step-00000000").symlink_to(tmp_path)
    a_checkpoint(root, 6)
    writer._retain(6)
    assert [step for step, _ in layout.committed(root)] == [6, 5, 1]

    # A refused step that is committed again is as good as any.
    writer._refused = frozenset({6})
    writer.keep_best = 0
    writer._retain(6)
    a_checkpoint(root, 7)
    writer._retain(7)
    assert [step for step, _ in layout.committed(root)] == [7, 6]


@given(numel=st.integers(0, 200), old=st.integers(1, 9), new=st.integers(1, 9))
def test_slices_of_one_world_make_up_those_of_another(numel: int, old: int, new: int):
    flat = torch.arange(numel)
    shards = [flat[slice(*partition(numel, rank, old))] for rank in range(old)]
    for rank in range(new):
        start, end = partition(numel, rank, new)
        parts = [shards[r][a:b] for r, a, b in pieces(numel, start, end, old)]
        found = torch.cat(parts) if parts else flat[:0]
        assert found.tolist() == list(range(start, end))


def test_identity_holds_what_decides_the_numbers_and_nothing_else():
    def spec(**training: object) -> DPOJobSpec:
        return DPOJobSpec.model_validate(
            {"model": {"name": "m"}, "data": {"train": {"source": "d"}}, "training": training}
        )

    same = identity(spec(), dataset="x")
    assert differences(same, identity(spec(microBatchSize=4, logEverySteps=9, device="cpu"), dataset="x")) == []
    assert differences(same, identity(spec(learningRate=5e-7), dataset="x")) == []  # the default, written out
    assert differences(same, identity(spec(seed=1), dataset="y")) == [
        "dataset: the checkpoint has 'x', the job 'y'",
        "spec.training.seed: the checkpoint has the default, the job 1",
    ]


def test_a_setting_that_a_later_version_adds_keeps_checkpoints_usable():
    job = {"model": {"name": "m"}, "data": {"train": {"source": "d"}, "eval": {"source": "e"}}}
    saved = identity(DPOJobSpec.model_validate(job), dataset="x")
    # Nothing is written of a setting that has its default, so one that did not exist yet looks the same.
    assert not any("truncation" in path or "weight" in path or "columns" in path for path in saved)
    job["data"]["truncation"] = "keep_end"
    job["method"] = {"beta": 0.1}
    assert differences(saved, identity(DPOJobSpec.model_validate(job), dataset="x")) == []
    job["method"] = {"beta": 0.2}
    assert differences(saved, identity(DPOJobSpec.model_validate(job), dataset="x")) == [
        "spec.method.beta: the checkpoint has 0.1, the job 0.2"
    ]


def test_a_failed_write_is_agreed_and_cleaned_up(tmp_path: Path):
    """A real write error in the middle of a shard: the process may not make files of that size (EFBIG)."""
    import resource
    import signal

    root = tmp_path / "checkpoints"
    kept = a_checkpoint(root, 1)

    class State:
        def entries(self) -> list[Entry]:
            return [entry("fp32/w", torch.zeros(100_000))]

    writer = Checkpoints(root, 1, {}, ranks=Ranks())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(TrainerError, match="File too large") as caught:
            writer.save(State(), step=2, loop={}, metrics={})  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)

    assert caught.value.exit_code is ExitCode.VOLUME_ERROR
    assert [folder for _, folder in layout.committed(root)] == [kept]
    assert os.listdir(root) == [kept.name]
