"""The jobs that people start from: valid without an error, and predicted to fit the hardware that their first lines name."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dpo_operator.api.models.config import shape_of
from dpo_operator.api.quantity import to_bytes
from dpo_operator.cli import jobfile
from dpo_operator.cli.main import app
from tests.conftest import REPOSITORY
from tests.unit.sizing.build import QWEN_7B

pytestmark = pytest.mark.unit

EXAMPLES = REPOSITORY / "examples"
JOBS = sorted((EXAMPLES / "jobs").glob("*.yaml"))


def llama(width: int, layers: int, heads: int, mlp: int, *, tied: bool = False) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": 8, "intermediate_size": mlp, "vocab_size": 128256, "tie_word_embeddings": tied,
    }  # fmt: skip


# Dimensions as in each model's config.json on the hub, and the parameters that its model card names, in billions.
MODELS: dict[str, tuple[dict[str, Any], float]] = {
    "qwen2.5-0.5b": (
        QWEN_7B | {
            "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True,
        },
        0.49,
    ),
    "qwen2.5-7b": (QWEN_7B, 7.62),
    "llama-3.2-1b": (llama(2048, 16, 32, 8192, tied=True), 1.24),
    "llama-3.1-8b": (llama(4096, 32, 32, 14336), 8.03),
    "llama-3.3-70b": (llama(8192, 80, 64, 28672), 70.6),
}  # fmt: skip


def hardware(path: Path) -> tuple[int, str]:
    """GPUs in all and their kind, from the file's second line."""
    found = re.match(r"# Hardware: (\d+) ([\w-]+) GPUs?\b", path.read_text(encoding="utf-8").splitlines()[1])
    assert found, f"{path}: expected a second line such as '# Hardware: 8 h100 GPUs'"
    return int(found[1]), found[2]


def dpo(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


@pytest.mark.parametrize(("config", "billions"), MODELS.values(), ids=MODELS)
def test_the_dimensions_are_those_of_the_models(config: dict[str, Any], billions: float) -> None:
    assert shape_of(config).parameters / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_an_example_is_valid_and_fits_its_hardware(path: Path, tmp_path: Path) -> None:
    done = dpo("validate", path)
    assert done.exit_code == 0, done.output
    job, (gpus, kind) = jobfile.read(path), hardware(path)
    assert job.spec.nodes * job.spec.gpus_per_node == gpus
    config = tmp_path / "config.json"
    model = job.spec.model.name.lower().rsplit("/")[-1].removesuffix("-instruct")
    config.write_text(json.dumps(MODELS[model][0]))
    done = dpo("plan", path, "--gpu", kind, "--model-config", config, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["memory"]["fits"], found["memory"]
    checkpoint, counted = job.spec.checkpoint, found["model"]
    # A checkpoint has 12 bytes for each trained parameter, and one more is there while it is written; the model in bf16 comes and goes.
    checkpoints = checkpoint.keep_last + checkpoint.keep_best + 1
    assert to_bytes(checkpoint.volume.size) >= 12 * counted["trained"] * checkpoints + 4 * counted["parameters"]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_an_example_begins_with_three_lines_that_say_what_it_is(path: Path) -> None:
    first, second, third, fourth = path.read_text(encoding="utf-8").splitlines()[:4]
    assert re.match(r"# [A-Z].*\.$", first)
    assert second.startswith("# Hardware: ")
    assert third.startswith("# To change: ")
    assert not fourth.startswith("#")


def test_the_table_names_each_example_with_its_gpus() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[([\w-]+)\]\(jobs/\1\.yaml\) \|.*\| (\d+) ([\w-]+) \|$", text, re.MULTILINE)
    assert {name: (int(gpus), kind) for name, gpus, kind in rows} == {path.stem: hardware(path) for path in JOBS}
