"""A small job that trains four steps and mirrors each of its checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM

from tests.contract.stores.conftest import Phases
from tests.s3 import KEY, SECRET, Server
from tests.unit.trainer.place import rows
from tests.unit.trainer.tiny import tiny_model, write_jsonl

KEYS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}


def a_job(server: Server, root: Path, bucket: str = "runs") -> Path:
    """bucket: of the mirror. It belongs to one run, and the server to all tests."""
    model = tiny_model(root / "model")
    # The same model with all of its weights.
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(model)
    job = {
        "apiVersion": "dpo-operator.dev/v1alpha1",
        "kind": "DPOJob",
        "metadata": {"name": "mirrored"},
        "spec": {
            "model": {"name": str(model)},
            "data": {"train": {"source": str(write_jsonl(root / "pairs.jsonl", rows(24)))}, "maxLength": 64},
            "training": {"globalBatchSize": 4, "maxSteps": 4, "learningRate": 0.01, "precision": "fp32"},
            "evaluation": {"samples": 0},
            "gpusPerNode": 0,
            "access": {"s3": {"endpoint": server.url}},
            "checkpoint": {"everySteps": 1, "keepLast": 4, "mirror": {"to": f"s3://{bucket}/mirrored"}},
        },
    }
    path = root / "dpojob.yaml"
    path.write_text(json.dumps(job))
    return path


def dpo_run(job: Path, phases: Phases, *options: str, code: int = 0) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("dpo"), "run", job, "--work-dir", phases.work, "--metrics-port", "0", *options],
        env={**os.environ, **KEYS},
        capture_output=True,
        text=True,
    )
    phases.output += done.stdout + done.stderr
    assert done.returncode == code, phases.output


def losses(phases: Phases) -> dict[int, float]:
    lines = (json.loads(line) for line in (phases.work / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}
