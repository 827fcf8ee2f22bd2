"""Tables of shards are untrusted bytes, and an intact checkpoint has every slice that readers need."""

import hashlib
import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_trainer.checkpoint import layout, verification
from dpo_trainer.checkpoint.manifest import File, read_manifest
from dpo_trainer.checkpoint.plain_files import BadCheckpoint
from dpo_trainer.checkpoint.verification import kinds_of, verify_shards
from tests.unit.trainer.checkpoints import JSON_VALUES, PLAIN_MANIFEST, a_checkpoint

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / layout.folder_name(3)
        path.mkdir()
        yield path


@given(
    table=st.binary(max_size=60) | JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    length=st.integers(0, 2**64 - 1),
)
def test_any_table_of_contents_is_refused_with_a_reason(place: Path, table: bytes, length: int):
    for size in (len(table), length):
        content = size.to_bytes(8, "little") + table
        (place / layout.shard_name(0)).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        files = {layout.shard_name(0): File(size=len(content), sha256=digest)}
        with pytest.raises(BadCheckpoint, match=r"is not safetensors|has no tensor fp32/w"):
            verify_shards(
                place, PLAIN_MANIFEST.model_copy(update={"files": files}), [0], kinds=kinds_of(PLAIN_MANIFEST)
            )


def test_an_intact_checkpoint_is_verified_and_missing_moments_are_found(tmp_path: Path):
    folder = a_checkpoint(tmp_path, 3)
    manifest, _ = read_manifest(folder)
    verify_shards(folder, manifest, [0], kinds=["fp32"])
    with pytest.raises(BadCheckpoint, match="has no tensor exp_avg/w"):
        verify_shards(folder, manifest, [0], kinds=kinds_of(manifest))


def test_shards_are_read_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = a_checkpoint(tmp_path, 3)
    second = folder / layout.shard_name(1)
    second.write_bytes((folder / layout.shard_name(0)).read_bytes())
    manifest, _ = read_manifest(folder)
    files = {layout.shard_name(rank): manifest.files[layout.shard_name(0)] for rank in range(2)}
    # All of the one parameter is on rank 0, so the second shard needs nothing.
    both = manifest.model_copy(update={"files": files, "world_size": 1})
    together = threading.Barrier(2, timeout=60)
    verify = verification.verify

    def wait_and_verify(*arguments: Any) -> None:
        together.wait()  # broken when one shard is read after the other
        verify(*arguments)

    monkeypatch.setattr(verification, "verify", wait_and_verify)
    verify_shards(folder, both, [0, 1], kinds=["fp32"])
    second.write_bytes(b"")
    with pytest.raises(BadCheckpoint, match=r"rank-00001\.safetensors: expected \d+ bytes, found 0"):
        verify_shards(folder, both, [0, 1], kinds=["fp32"])
