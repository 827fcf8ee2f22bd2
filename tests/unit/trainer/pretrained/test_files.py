"""Which files of a model are taken, and which models are refused."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.pretrained import checks, files
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.sources import resolve
from dpo_trainer.sources.hub import Snapshot
from dpo_trainer.sources.resolve import FileSource
from tests.unit.trainer.tiny import CONFIG, tiny_model

pytestmark = pytest.mark.unit

WHOLE = {"config.json": 1, "model.safetensors": 1, "tokenizer.json": 1}


def refused(code: ExitCode, match: str):
    return pytest.raises(TrainerError, match=match, check=lambda error: error.exit_code == code)


def test_only_files_that_training_needs_are_fetched():
    sizes = WHOLE | dict.fromkeys(
        ("generation_config.json", "tokenizer_config.json", "LICENSE.txt", "NOTICE", "pytorch_model.bin", "modeling_custom.py",
         "original/consolidated.safetensors", "consolidated.safetensors", "onnx/model.onnx", "README.md", ".gitattributes"), 1
    )  # fmt: skip
    names = files.small_files(sizes, "m")
    assert names == [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "LICENSE.txt",
        "NOTICE",
    ]
    assert files.weight_files(Path("/nowhere"), sizes, "m") == ["model.safetensors"]


@pytest.mark.parametrize(
    ("sizes", "code", "match"),
    [
        ({"README.md": 1}, ExitCode.INPUT_NOT_FOUND, r"no config\.json; found README\.md"),
        ({"adapter_config.json": 1, "adapter_model.safetensors": 1}, ExitCode.INVALID_CONFIGURATION, "adapter alone .* as spec.model.adapter.name"),
        ({"config.json": 1, "tokenizer.json": 1, "pytorch_model.bin": 1}, ExitCode.INVALID_CONFIGURATION, r"found pytorch_model\.bin\. Pickled"),
        ({"config.json": 1, "tokenizer.json": 1}, ExitCode.INVALID_CONFIGURATION, "expected model.safetensors"),
        ({"config.json": 1, "model.safetensors": 1, "vocab.json": 1}, ExitCode.INPUT_NOT_FOUND, "no tokenizer"),
    ],
)  # fmt: skip
def test_missing_files_are_named(sizes, code, match):
    with refused(code, match):
        files.small_files(sizes, "m")


def test_missing_shards_are_named(tmp_path):
    tiny_model(tmp_path, shards=2)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    sizes = dict.fromkeys(["model.safetensors.index.json", *names], 1)
    assert files.weight_files(tmp_path, sizes, "m") == names
    del sizes[names[1]]
    with refused(ExitCode.INPUT_NOT_FOUND, "1 of 2 weight files are missing: model-00002"):
        files.weight_files(tmp_path, sizes, "m")


@pytest.mark.parametrize("weight_map", [{}, None, {"a": 1}, {"a": "../other.safetensors"}, {"a": "model.bin"}])
def test_an_index_that_names_no_safetensors_beside_it(tmp_path, weight_map):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with refused(ExitCode.INVALID_CONFIGURATION, r"index\.json"):
        files.weight_files(tmp_path, {"model.safetensors.index.json": 1}, "m")


def test_a_single_file_is_not_a_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with refused(ExitCode.INPUT_NOT_FOUND, "expected a folder"):
        files.listing(resolve(str(tmp_path / "model.safetensors"), claims=tmp_path), None)


def test_files_larger_than_the_free_space_are_not_started(tmp_path):
    model = files.ModelListing(FileSource("m", "path", "/nowhere", False, {}), {"model.safetensors": 2**62}, None, None)
    with refused(ExitCode.VOLUME_ERROR, r"need 4294967296\.0 GiB"):
        files.fetch(model, ["model.safetensors"], tmp_path / "new", None)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_link_in_the_place_of_a_copy_is_not_written_through(tmp_path):
    source, folder, other = tmp_path / "source", tmp_path / "copy", tmp_path / "other"
    source.mkdir()
    folder.mkdir()
    (source / "config.json").write_text("{}")
    other.write_text("as it was")
    (folder / "config.json").symlink_to(other)
    files.fetch(files.listing(resolve(str(source), claims=tmp_path), None), ["config.json"], folder, None)
    assert other.read_text() == "as it was"
    assert (folder / "config.json").read_text() == "{}"


def test_a_download_that_differs_from_the_hub_is_removed(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    found = Snapshot("org/name", "c", {}, {"model.safetensors": "0" * 64})
    digests = files.sha256_of(tmp_path, ["model.safetensors"])
    with refused(ExitCode.SOURCE_UNAVAILABLE, "differ from the hub's SHA-256"):
        files.check_against_hub(found, tmp_path, digests)
    assert not (tmp_path / "model.safetensors").exists()


def check(folder: Path, **changes) -> dict:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return checks.check_config(folder, "m")


def test_a_causal_language_model_is_accepted(tmp_path):
    assert check(tmp_path)["model_type"] == "llama"
    assert check(tmp_path, architectures=None)["model_type"] == "llama"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, "code of its own"),
        ({"model_type": "no-such-model"}, "found model_type 'no-such-model'"),
        ({"model_type": None}, "found model_type None"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "expected a causal language model"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "expected LlamaForCausalLM, found LlamaForSequenceClassification",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, "unquantized"),
    ],
)
def test_models_that_can_not_be_trained(tmp_path, changes, match):
    with refused(ExitCode.INVALID_CONFIGURATION, match):
        check(tmp_path, **changes)


def test_code_of_a_tokenizer_is_refused_too(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["x.X", None]}}))
    with refused(ExitCode.INVALID_CONFIGURATION, "tokenizer_config.json asks for code of its own"):
        check(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_configuration(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with refused(ExitCode.INVALID_CONFIGURATION, r"config\.json"):
        checks.check_config(tmp_path, "m")


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),
        ({"max_position_embeddings": 512, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, 512),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, 131072),
        ({"max_position_embeddings": 163840, "rope_scaling": {"factor": 40, "original_max_position_embeddings": 4096}}, 163840),
        ({}, None),
    ],
)  # fmt: skip
def test_context_length(config, length):
    assert checks.context_length(config) == length


def test_end_tokens_of_both_files(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1]}))
    assert checks.end_tokens(tmp_path, {"eos_token_id": 2}, "m") == [2, 1]
    assert checks.end_tokens(tmp_path / "none", {}, "m") == []


def test_headers_give_parameters_and_types(tmp_path, shared):
    tiny_model(tmp_path, shards=2)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    tiny = checks.check_weights(tmp_path, names, "m")
    assert tiny == checks.Weights(
        261 * 4 + 4, ("F32",), {"model.embed_tokens.weight": (261, 4), "model.norm.weight": (4,)}
    )
    real = checks.check_weights(shared / "models/stories260K", ["model.safetensors"], "m")
    assert (real.parameters, real.dtypes) == (260_032, ("F32",))


def test_a_tensor_of_the_index_that_is_in_no_shard(tmp_path):
    tiny_model(tmp_path, shards=2)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with refused(ExitCode.INVALID_CONFIGURATION, r"lacks tensors .*model\.extra\.weight"):
        checks.check_weights(tmp_path, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "m")


def test_integer_weights_are_refused(tmp_path):
    header = json.dumps({"w": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with refused(ExitCode.INVALID_CONFIGURATION, "expected floating-point weights, found I8"):
        checks.check_weights(tmp_path, ["model.safetensors"], "m")


@given(st.data())
def test_any_cut_or_padding_of_a_weight_file_is_detected(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("weights")
    whole = (tiny_model(folder) / "model.safetensors").read_bytes()
    size = data.draw(st.integers(0, len(whole) + 20).filter(lambda n: n != len(whole)))
    (folder / "model.safetensors").write_bytes((whole + bytes(20))[:size])
    with refused(ExitCode.INVALID_CONFIGURATION, r"model\.safetensors is not a whole safetensors file"):
        checks.check_weights(folder, ["model.safetensors"], "m")


@given(st.binary(max_size=80), st.booleans())
def test_any_header_is_read_or_refused(tmp_path_factory, header, with_length):
    path = tmp_path_factory.mktemp("header") / "model.safetensors"
    path.write_bytes((struct.pack("<Q", len(header)) if with_length else b"") + header)
    with refused(ExitCode.INVALID_CONFIGURATION, "safetensors|floating-point"):
        checks.check_weights(path.parent, ["model.safetensors"], "m")
