"""Manifests and tables of shards are untrusted bytes: any input is refused or has a single meaning."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.manifest import MANIFEST, File, Manifest, Parameter, read_manifest
from dpo_trainer.checkpoint.plain_files import BadCheckpoint
from dpo_trainer.checkpoint.verification import kinds_of, verify_shards
from tests.unit.trainer.checkpoints import a_checkpoint, loop_state

pytestmark = pytest.mark.unit

PLAIN = Manifest(
    step=3, attempt=1, world_size=1, time=0.0, identity={"spec.training.seed": 1}, adam_step=3, state=loop_state(3),
    versions={"torch": "2"}, parameters={"w": Parameter(shape=(7,), dtype="float32")},
    files={layout.shard_name(0): File(size=1, sha256="0" * 64)}, metrics={"loss": 0.5, "selection": None},
)  # fmt: skip

# Also what the json module writes and JSON does not have.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.integers(10**18, 10**30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / layout.folder_name(3)
        path.mkdir()
        yield path


def read(place: Path, content: bytes) -> Manifest | None:
    """The manifest, or None if it is refused with a short line. Any other exception fails the test."""
    (place / MANIFEST).write_bytes(content)
    try:
        return read_manifest(place)[0]
    except BadCheckpoint as error:
        reason = str(error)
    assert reason.isprintable()
    assert len(reason) < 500
    return None


@given(content=st.binary(max_size=200))
def test_invalid_manifests_are_refused(place: Path, content: bytes):
    assert read(place, content) is None


@given(field=st.sampled_from(sorted(Manifest.model_fields)), value=VALUES)
@settings(max_examples=300)
def test_any_value_in_any_field_is_refused_or_read_as_written(place: Path, field: str, value: object):
    document = json.loads(PLAIN.to_bytes()) | {field: value}
    found = read(place, json.dumps(document).encode())
    if found is not None:
        # Metrics are floats, and not every large integer is one.
        assert json.loads(found.to_bytes(), parse_int=float) == json.loads(json.dumps(document), parse_int=float)


@given(position=st.integers(0, len(PLAIN.to_bytes()) - 1), value=st.integers(0, 255))
@settings(max_examples=300)
def test_a_manifest_with_one_byte_changed_is_refused_or_has_another_digest(place: Path, position: int, value: int):
    content = bytearray(PLAIN.to_bytes())
    before, content[position] = content[position], value
    (place / MANIFEST).write_bytes(PLAIN.to_bytes())
    _, digest = read_manifest(place)
    if read(place, bytes(content)) is not None and value != before:
        assert read_manifest(place)[1] != digest


@given(cut=st.integers(0, len(PLAIN.to_bytes()) - 1))
def test_a_manifest_that_ends_too_early_is_refused(place: Path, cut: int):
    assert read(place, PLAIN.to_bytes()[:cut]) is None


def test_the_plain_manifest_is_read(place: Path):
    assert read(place, PLAIN.to_bytes()) == PLAIN


@given(
    table=st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()),
    length=st.integers(0, 2**64 - 1),
)
def test_any_table_of_contents_is_refused_with_a_reason(place: Path, table: bytes, length: int):
    for size in (len(table), length):
        content = size.to_bytes(8, "little") + table
        (place / layout.shard_name(0)).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        files = {layout.shard_name(0): File(size=len(content), sha256=digest)}
        with pytest.raises(BadCheckpoint, match=r"is not safetensors|has no tensor fp32/w"):
            verify_shards(place, PLAIN.model_copy(update={"files": files}), [0], kinds=kinds_of(PLAIN))


def test_an_intact_checkpoint_is_verified_and_missing_moments_are_found(tmp_path: Path):
    folder = a_checkpoint(tmp_path, 3)
    manifest, _ = read_manifest(folder)
    verify_shards(folder, manifest, [0], kinds=["fp32"])
    with pytest.raises(BadCheckpoint, match="has no tensor exp_avg/w"):
        verify_shards(folder, manifest, [0], kinds=kinds_of(manifest))
