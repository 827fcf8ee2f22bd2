"""Warnings about settings that guides call dangerous."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_operator.api.rules import advice as rules
from dpo_operator.api.rules.advice import advice
from dpo_operator.cli import jobfile
from tests.conftest import REPOSITORY
from tests.unit.planning.build import a_job

pytestmark = pytest.mark.unit

JOBS = sorted((REPOSITORY / "examples" / "jobs").glob("*.yaml"))
LORA = {"adapter": {"type": "lora"}}
# The walkthrough has the settings of the script that it stands beside, and says so.
ON_PURPOSE = {"walkthrough.yaml": ["training.warmupRatio"]}


def fields(parameters: int | None = None, **spec: Any) -> list[str]:
    return [found.field for found in advice(a_job(**spec).spec, parameters)]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_examples_have_settings_that_guides_recommend(path: Path):
    found = [each.field for each in advice(jobfile.read(path).spec)]
    assert found == ON_PURPOSE.get(path.name, [])


def test_the_job_of_the_readme_gives_no_warning():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("```yaml")[1].split("```")[0]
    assert fields(**yaml.safe_load(text)["spec"]) == []


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"method": {"beta": 0.005}}, "method.beta"),
        ({"method": {"beta": 0.6}}, "method.beta"),
        ({"method": {"beta": 0.02}, "training": {"learningRate": 2e-5}, **LORA}, "method.beta"),
        ({"training": {"learningRate": 5e-6}}, "training.learningRate"),
        ({"training": {"learningRate": 1e-7}}, "training.learningRate"),
        ({"training": {"learningRate": 1e-4}, **LORA}, "training.learningRate"),
        ({"method": {"name": "simpo"}, "training": {"learningRate": 1e-5}}, "training.learningRate"),
        ({"method": {"name": "orpo"}, "training": {"learningRate": 1e-4}}, "training.learningRate"),
        ({"training": {"epochs": 4.0}}, "training.epochs"),
        ({"training": {"globalBatchSize": 8}}, "training.globalBatchSize"),
        ({"training": {"globalBatchSize": 2048}}, "training.globalBatchSize"),
        ({"training": {"warmupRatio": 0}}, "training.warmupRatio"),
        (
            {"model": {"name": "org/Model-Instruct"}, "data": {"train": {"source": "a/b", "format": "pairs"}}},
            "data.train.format",
        ),
        ({"model": {"name": "org/model", "reference": {"name": "org/other"}}}, "model.reference"),
    ],
)
def test_each_dangerous_setting_is_named_with_its_source(spec: dict[str, Any], field: str):
    (found,) = advice(a_job(**spec).spec)
    assert found.field == field
    assert found.source
    assert str(found) == f"spec.{field}: {found.text} ({found.source})"


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"method": {"beta": 0.01}},
        {"method": {"beta": 0.5}},
        {"method": {"name": "simpo", "beta": 2.5}, "training": {"learningRate": 3e-7}},
        {"method": {"name": "ln-dpo", "beta": 5.0}},
        {"method": {"name": "orpo"}, "training": {"learningRate": 8e-6, "epochs": 3.0}},
        {"training": {"learningRate": 5e-5, "globalBatchSize": 16}, **LORA},
        {"training": {"epochs": 50.0, "maxSteps": 100}},
        {"model": {"name": "org/Model-Instruct"}},
        {"model": {"name": "org/base"}, "data": {"train": {"source": "a/b", "format": "pairs"}}},
        {"model": {"name": "org/model", "reference": {"name": "org/model"}}},
        {"method": {"name": "simpo"}, "model": {"name": "org/model"}},
    ],
)
def test_settings_that_a_guide_recommends_give_no_warning(spec: dict[str, Any]):
    assert fields(**spec) == []


def test_high_rates_are_for_small_models():
    high = {"training": {"learningRate": 1e-4}}
    assert fields(rules.SMALL_MODEL, **high) == fields(**high) == ["training.learningRate"]
    assert fields(rules.SMALL_MODEL - 1, **high) == []
    assert fields(1000, training={"learningRate": 1e-8}) == ["training.learningRate"]


def test_the_docs_have_the_limits():
    page = (REPOSITORY / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    table = page.split("### Settings that `dpo validate` warns of")[1].split("\n## ")[0]
    limits = [*rules.BETAS, *rules.RATES, *rules.ADAPTER_RATES, *rules.SIMPO_RATES, *rules.ORPO_RATES, *rules.BATCHES]
    for limit in (*limits, rules.HIGH_RATE, rules.LEAST_BETA, rules.MOST_EPOCHS):
        assert f"{limit:g}".replace("e-0", "e-").replace("1024", "1,024") in table, limit
    assert {rule.field for rule in rules.RULES if f"`{rule.field}`" not in table} == set()
