"""The header of a safetensors file, read without torch."""

import json

import pytest

from dpo_trainer.runtime import safetensors_header

pytestmark = pytest.mark.unit

ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def written(path, header: bytes, data: bytes = b"1234"):
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def test_tensors_are_returned_without_metadata_and_the_data_follow(tmp_path):
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": ENTRY}).encode()
    with written(tmp_path / "x", header).open("rb") as file:
        assert safetensors_header.read(file) == {"a": ENTRY}
        assert file.read() == b"1234"


@pytest.mark.parametrize("header", [b"[]", b"1", b'{"a": 1}', b"{", b"\xff\xff", b'{"a":' * 100_000])
def test_a_damaged_header_is_a_value_error(tmp_path, header):
    with written(tmp_path / "x", header).open("rb") as file, pytest.raises(ValueError):
        safetensors_header.read(file)


@pytest.mark.parametrize("content", [b"", b"\x04", (5).to_bytes(8, "little") + b"{}", (2**60).to_bytes(8, "little")])
def test_a_length_beyond_the_file_is_a_value_error(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    with path.open("rb") as file, pytest.raises(ValueError, match="header of"):
        safetensors_header.read(file)
