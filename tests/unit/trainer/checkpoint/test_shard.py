"""Shards: written with heartbeats and syncs, read in slices, and any damage is detected."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpo_trainer.checkpoint import shard, verification
from dpo_trainer.checkpoint.manifest import read_manifest
from dpo_trainer.checkpoint.plain_files import BadCheckpoint
from dpo_trainer.checkpoint.shard import ShardReader, file_size, write_shard
from tests.unit.trainer.checkpoints import ENTRIES, a_checkpoint, entry

pytestmark = pytest.mark.unit


def test_a_shard_is_plain_safetensors(tmp_path: Path):
    path = tmp_path / "rank-00000.safetensors"
    file = write_shard(path, ENTRIES, lambda _: None)
    found = load_file(path)

    assert {name: tensor.tolist() for name, tensor in found.items()} == {e.name: e.read().tolist() for e in ENTRIES}
    assert file.size == path.stat().st_size == file_size(ENTRIES)
    verification.verify(tmp_path, path.name, file)
    assert ShardReader(path).slice("fp32/w", 2, 5).tolist() == [2.0, 3.0, 4.0]
    with pytest.raises(BadCheckpoint, match="fp32/w: expected elements 2 to 8"):
        ShardReader(path).slice("fp32/w", 2, 8)


def test_each_written_tensor_and_each_verified_chunk_is_a_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, written, on_disk, read = tmp_path / "rank-00000.safetensors", [], [], []
    large = [entry(f"fp32/{number}", torch.ones(1 << 20)) for number in range(5)]
    sync = os.fdatasync

    def synced(descriptor: int) -> None:
        sync(descriptor)
        on_disk.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(shard, "_UNSYNCED_BYTES", 6 << 20)
    monkeypatch.setattr(os, "fdatasync", synced)
    file = write_shard(path, large, lambda _: None, lambda: written.append(path.stat().st_size))
    verification.verify(tmp_path, path.name, file, lambda: read.append(None))

    assert len(written) == 1 + len(large)
    assert written[-1] > 15 << 20
    # This bounds the final sync.
    assert [size >> 20 for size in on_disk] == [8, 16]
    assert len(read) == 3


def test_an_empty_shard_is_valid(tmp_path: Path):
    path = tmp_path / "rank-00003.safetensors"
    write_shard(path, [], lambda _: None)

    assert load_file(path) == {}


def test_what_replaces_a_shard_after_it_was_verified_is_not_followed(tmp_path: Path):
    path, other = tmp_path / "rank-00000.safetensors", tmp_path / "other"
    write_shard(other, ENTRIES, lambda _: None)
    path.symlink_to(other)
    with pytest.raises(BadCheckpoint, match="symbolic links"):
        ShardReader(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BadCheckpoint, match="not a regular file"):
        ShardReader(path)


def test_every_kind_of_damage_to_a_shard_is_detected(tmp_path: Path):
    folder = a_checkpoint(tmp_path, 1)
    manifest, _ = read_manifest(folder)
    [(name, file)] = manifest.files.items()
    content = (folder / name).read_bytes()
    for position in range(len(content)):
        (folder / name).write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        with pytest.raises(BadCheckpoint, match="SHA-256"):
            verification.verify(folder, name, file)
    for length in (0, 1, len(content) - 1):
        (folder / name).write_bytes(content[:length])
        with pytest.raises(BadCheckpoint, match=f"found {length}"):
            verification.verify(folder, name, file)
