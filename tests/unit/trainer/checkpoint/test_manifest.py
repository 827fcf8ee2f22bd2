"""Manifests are untrusted bytes: any input is refused or has a single meaning."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from dpo_trainer.checkpoint.plain_files import BadCheckpoint
from tests.unit.trainer.checkpoints import JSON_VALUES, PLAIN_MANIFEST, a_checkpoint

pytestmark = pytest.mark.unit


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


@given(field=st.sampled_from(sorted(Manifest.model_fields)), value=JSON_VALUES)
@settings(max_examples=300)
def test_any_value_in_any_field_is_refused_or_read_as_written(place: Path, field: str, value: object):
    document = json.loads(PLAIN_MANIFEST.to_bytes()) | {field: value}
    found = read(place, json.dumps(document).encode())
    if found is not None:
        # Metrics are floats, and not every large integer is one.
        assert json.loads(found.to_bytes(), parse_int=float) == json.loads(json.dumps(document), parse_int=float)


@given(position=st.integers(0, len(PLAIN_MANIFEST.to_bytes()) - 1), value=st.integers(0, 255))
@settings(max_examples=300)
def test_a_manifest_with_one_byte_changed_is_refused_or_has_another_digest(place: Path, position: int, value: int):
    content = bytearray(PLAIN_MANIFEST.to_bytes())
    before, content[position] = content[position], value
    (place / MANIFEST).write_bytes(PLAIN_MANIFEST.to_bytes())
    _, digest = read_manifest(place)
    if read(place, bytes(content)) is not None and value != before:
        assert read_manifest(place)[1] != digest


@given(cut=st.integers(0, len(PLAIN_MANIFEST.to_bytes()) - 1))
def test_a_manifest_that_ends_too_early_is_refused(place: Path, cut: int):
    assert read(place, PLAIN_MANIFEST.to_bytes()[:cut]) is None


def test_the_plain_manifest_is_read(place: Path):
    assert read(place, PLAIN_MANIFEST.to_bytes()) == PLAIN_MANIFEST


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
def test_an_invalid_manifest_is_refused(tmp_path: Path, change: dict, reason: str):
    folder = a_checkpoint(tmp_path, 3)
    document = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**document, **change}))

    with pytest.raises(BadCheckpoint, match=reason):
        read_manifest(folder)
