"""Models and datasets of a hub, over real HTTP on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.sources.hub import snapshot_of
from dpo_trainer.sources.retrying import explain
from tests.unit.trainer.hub_server import COMMIT

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each scenario of hub_scenarios.py gave."""
    folder = tmp_path_factory.mktemp("hub")
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("HF_") and not key.lower().endswith("_proxy")
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.trainer.hub_scenarios", str(folder)],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_model_and_a_dataset_are_prepared(results):
    found = results["whole"]
    assert (found["report"]["train_pairs"], found["report"]["eval_pairs"]) == (10, 5)
    made = found["made"]
    assert made["model"]["commit"] == made["inputs"]["train"]["commit"] == made["inputs"]["eval"]["commit"] == COMMIT
    assert made["inputs"]["train"]["format"] == "messages"
    assert found["left"] == ["data", "model", "prepared.json"]


def test_only_safetensors_configuration_and_tokenizer_are_downloaded(results):
    found = results["whole"]
    assert found["files"] == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    asked = " ".join(found["requests"])
    assert not any(name in asked for name in ("pytorch_model.bin", "modeling_x.py", "consolidated"))


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        *(("a.json", True), ("data/train 1.parquet", True), ("é/x", True), ("a..b", True)),
        *(
            ("../x", False),
            ("a/../x", False),
            ("/x", False),
            ("a//b", False),
            ("./a", False),
            ("a\\b", False),
            ("", False),
        ),
    ],
)
def test_file_names_outside_the_folder_are_not_listed(name, plain):
    info = SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=name, size=1, blob_id="0", lfs=None)])
    assert (name in snapshot_of("org/name", info, "dataset").sizes) == plain


def test_an_error_that_is_its_own_cause_is_visited_once():
    error = ValueError("odd")
    error.__cause__ = error
    assert explain(error, "x") is None


@pytest.mark.parametrize(
    ("name", "pairs"), [("slice", 3), ("limit", 3), ("configured", 5), ("private", 10), ("scored", 4)]
)
def test_parts_of_a_dataset(results, name, pairs):
    assert results[name]["code"] == 0, results[name]
    assert results[name]["report"]["train_pairs"] == pairs


@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [
        ("private without token", ExitCode.ACCESS_DENIED, "tokenSecretRef"),
        ("private data without token", ExitCode.ACCESS_DENIED, "org/private: access was refused"),
        ("gated", ExitCode.ACCESS_DENIED, "org/gated/config.json: the repository is gated: accept its terms"),
        ("closed", ExitCode.ACCESS_DENIED, "org/closed: the repository is gated: accept its terms"),
        ("gated data", ExitCode.ACCESS_DENIED, "org/gated: the repository is gated: accept its terms"),
        ("closed data", ExitCode.ACCESS_DENIED, "org/closed: the repository is gated: accept its terms"),
        ("unknown", ExitCode.INPUT_NOT_FOUND, "org/unknown: not found"),
        ("unknown revision", ExitCode.INPUT_NOT_FOUND, "org/tiny@v9: the repository has no such revision"),
        ("unknown data revision", ExitCode.INPUT_NOT_FOUND, "org/pairs@v9: the repository has no such revision"),
        ("down", ExitCode.SOURCE_UNAVAILABLE, "org/down: no answer (HTTP 503)"),
        ("pickle", ExitCode.INVALID_CONFIGURATION, "found pytorch_model.bin"),
        ("no split", ExitCode.INPUT_NOT_FOUND, "no split validation"),
        ("no config", ExitCode.INVALID_CONFIGURATION, "no configuration c"),
        ("config missing", ExitCode.INVALID_CONFIGURATION, "several configurations; set config"),
        ("empty", ExitCode.INPUT_NOT_FOUND, "no data files"),
        ("script", ExitCode.UNSUPPORTED, "code from a hub is never run"),
        ("unfit", ExitCode.BAD_DATASET, "found q (list), answers (list), rank (list), id (str), meta (dict)"),
        ("damaged", ExitCode.BAD_DATASET, "can't be read as a dataset"),
        ("offline", ExitCode.SOURCE_UNAVAILABLE, "HF_HUB_OFFLINE"),
    ],
)
def test_failures_have_codes_and_reasons(results, name, code, expected):
    found = results[name]
    assert (found["code"], found["prepared"]) == (code, False), found
    assert expected in found["message"]


def test_the_token_is_in_no_message(results):
    assert not any("hf_right" in found.get("message", "") for found in results.values())


def test_an_unreachable_hub_is_retried_but_a_refusal_is_not(results):
    from dpo_trainer.sources.retrying import ATTEMPTS

    assert results["down"]["requests"].count("GET api/models/org/down") >= ATTEMPTS
    assert results["gated"]["requests"].count("GET api/models/org/gated") == 1


def test_a_bad_model_is_refused_before_its_files_are_downloaded(results):
    assert not any("resolve" in request for request in results["pickle"]["requests"])


def test_bad_data_is_refused_before_the_weights_are_downloaded(results):
    assert not any("model.safetensors" in request for request in results["no split"]["requests"])
