"""The fields of the job file. Trainer images refuse fields that they don't know, and pods of a running job may have an earlier image."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.builders.config import job_file
from tests.unit.planning.build import a_job

pytestmark = pytest.mark.unit

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures/v1alpha1/job_fields.json"
KNOWN = frozenset(json.loads(FIXTURE.read_text()))
OBJECTS = {field.rpartition(".")[0] for field in KNOWN} - {""}

# Every part of the spec that version 0.1.0 had.
EVERYTHING: dict[str, Any] = {
    "model": {"name": "org/model", "tokenSecretRef": {"name": "hf"}},
    "data": {
        "train": {"source": "org/pairs", "columns": {"prompt": "question"}},
        "mixture": [{"source": "org/more", "weight": 0.5}],
        "eval": {"source": "org/pairs", "split": "test"},
        "filters": {"where": [{"column": "lang", "values": ["en"]}]},
    },
    "adapter": {"type": "lora"},
    "method": {"name": "dpo", "plus": [{"name": "orpo", "weight": 0.1}]},
    "earlyStopping": {"patience": 2},
    "failurePolicy": {"rules": [{"action": "Fail", "exitCodes": [1]}]},
    "pod": {
        "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
        "tolerations": [{"key": "team"}],
        "topology": {"packBy": "rack"},
    },
    "cache": {"claimName": "cache"},
    "queue": {"kind": "Kueue", "name": "team"},
    "tracking": {"wandb": {"project": "dpo", "apiKeySecretRef": {"name": "wandb"}}},
}


def fields(value: Any, path: str = "") -> Iterator[str]:
    """Paths of the fields in a part of a spec; keys of free maps are none."""
    if isinstance(value, list):
        for item in value:
            yield from fields(item, path)
    elif isinstance(value, dict) and (not path or path in OBJECTS or path not in KNOWN):
        for key, part in value.items():
            inner = f"{path}.{key}" if path else key
            yield inner
            yield from fields(part, inner)


@pytest.mark.parametrize("spec", [{}, EVERYTHING], ids=["least", "everything"])
def test_an_earlier_job_has_the_fields_that_earlier_images_know(spec: dict[str, Any]):
    found = set(fields(json.loads(job_file(a_job(**spec)))["spec"]))
    assert found <= KNOWN
    if spec:
        assert found >= OBJECTS


def test_later_fields_are_written_where_they_are_used():
    data = {
        "train": {"source": "a/b", "ignoreColumns": ["system"], "columns": {"annotators": ["x", "y"]}},
        "mixture": [{"source": "a/c", "ignoreColumns": ["system"]}],
        "template": {"keepReasoning": "none"},
    }
    training = {"hierarchicalPartition": True, "gradientReduction": "bf16", "routerAuxLoss": 0.01}
    job = a_job(
        data=data,
        diagnosis={"stopOn": ["Gibberish"]},
        training=training,
        resumeFrom={"source": "pvc://c/x"},
        nodes=2,
        gpusPerNode=2,
    )
    written = json.loads(job_file(job))
    assert set(fields(written["spec"])) - KNOWN == {
        "data.template",
        "data.template.keepReasoning",
        "data.template.specialTokens",
        "data.train.ignoreColumns",
        "data.train.columns.annotators",
        "data.mixture.ignoreColumns",
        "diagnosis",
        "diagnosis.enabled",
        "diagnosis.stopOn",
        "diagnosis.thresholds",
        "resumeFrom",
        "resumeFrom.source",
        "training.hierarchicalPartition",
        "training.gradientReduction",
        "training.routerAuxLoss",
    }
    assert type(job).model_validate(written).spec == job.spec
