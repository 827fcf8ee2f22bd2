"""Rounds that generate with vLLM, through `dpo run`: the trainer's own check of the generator's log-probs is the first of its proofs."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tied

pytestmark = pytest.mark.vllm

_NAMES = ("Lily", "Tom", "Ben", "Sue", "Max", "Mia", "Ann", "Tim")
_STARTS = (
    "Once upon a time, {} had a",
    "One day, {} went to",
    "{} was",
    "There was a cat and {}",
    "The dog of {}",
    "{} and a big",
    "In the park {}",
)
PROMPTS, COMPARED = 24, 6


def write_job(folder: Path, model: Path, **spec: Any) -> Path:
    rows = [{"prompt": start.format(name), "chosen": " a.", "rejected": " b."} for start in _STARTS for name in _NAMES]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = {
        "apiVersion": "dpo-operator.dev/v1alpha1", "kind": "DPOJob", "metadata": {"name": "vllm"},
        "spec": {
            "model": {"name": str(model)},
            "data": {"train": {"source": str(folder / "train.jsonl")}, "maxLength": 64},
            "training": {
                "globalBatchSize": 8, "learningRate": 1e-3, "precision": "fp32", "device": "cpu", "gradientCheckpointing": False, "epochs": 1,
            },
            "gpusPerNode": 0,
            "failurePolicy": {"backoffSeconds": 1},
            "iterative": {
                "rounds": 2, "promptsPerRound": PROMPTS, "winRate": {"prompts": COMPARED}, "pairs": {"chosenMustEnd": False},
                "evaluateLast": False, "stopWhenWorse": False,
                "generation": {"engine": "vllm", "samplesPerPrompt": 4, "maxNewTokens": 32, "unitPrompts": 1},
                "judge": {"type": "builtin", "builtin": {"name": "regex", "pattern": "[aeiou][aeiou]"}},
            },
            **spec,
        },
    }  # fmt: skip
    file = folder / "dpojob.json"
    file.write_text(json.dumps(document))
    return file


def dpo_run(python: str, file: Path, work: Path) -> Any:
    return tied.popen(
        [Path(sys.executable).with_name("dpo"), "run", file, "--work-dir", work],
        env=os.environ | {"DPO_GENERATE_PYTHON": python},
        stdout=sys.stderr,
        stderr=sys.stderr,
    )


def processes(*words: str) -> dict[int, str]:
    """Command lines of running processes that have all these words."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words):
            found[int(path.parent.name)] = line
    return found


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def checked(work: Path) -> None:
    """Both rounds were generated, trained and exported, and the trainer agreed with the generator."""
    for number in (1, 2):
        leg = work / f"rounds/{number:04d}"
        assert len(list((leg / "generated").glob("unit-*"))) == PROMPTS
        report = json.loads((leg / "round.json").read_text())
        assert (report["answers"], report["pairs"] > 0) == (4 * PROMPTS, True)
        generated = np.load(leg / "data" / "logps.npy")
        assert np.isfinite(generated).all()
        assert list((leg / "checkpoints").glob("step-*"))
    # Answers of the second policy differ from the first one's, as the initial model in vLLM says; the estimate of so few may be negative.
    assert json.loads((work / "rounds/0002/round.json").read_text())["kl_to_initial"] != 0
    assert (work / "export" / "dpo_provenance.json").is_file()


def test_two_rounds_of_all_weights_with_a_generator_killed_between_units(python: str, model: Path, tmp_path: Path):
    work = tmp_path / "work"
    run = dpo_run(python, write_job(tmp_path, model), work)
    units = work / "rounds/0001/generated"
    while not list(units.glob("unit-*")) and run.poll() is None:
        time.sleep(0.01)
    assert run.poll() is None
    (generator,) = processes("dpo_trainer generate", str(work))
    assert processes("dpo_trainer generate", str(work))[generator].startswith(python)
    below = children(generator)
    os.kill(generator, signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in units.glob("unit-*")}
    assert 0 < len(kept) < PROMPTS, "the kill came too late"
    # vLLM's process has no parent that could end it.
    for _ in range(100):
        left = [
            pid for pid in below if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        if not left:
            break
        time.sleep(0.1)
    assert below
    assert left == []
    assert run.wait() == 0
    assert all(path.stat().st_mtime_ns == made for path, made in kept.items())
    assert (work / "termination-generate-2-0.json").is_file()
    checked(work)


def test_two_rounds_of_an_adapter(python: str, model: Path, tmp_path: Path):
    work = tmp_path / "work"
    file = write_job(
        tmp_path, model, adapter={"type": "lora", "rank": 4, "targetModules": ["q_proj", "v_proj", "down_proj"]}
    )
    assert dpo_run(python, file, work).wait() == 0
    checked(work)
    assert (work / "rounds/0001/export/adapter_model.safetensors").is_file()
