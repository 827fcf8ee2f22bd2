"""The state of the training loop in a manifest: format 1 as earlier code wrote it, and nothing that would be misread."""

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from dpo_trainer.checkpoint.loop_state import LoopState, LossScaleState, Probe, finite
from dpo_trainer.checkpoint.manifest import MANIFEST, read_manifest
from tests.unit.trainer.checkpoints import loop_state

pytestmark = pytest.mark.unit

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"
EARLIER = sorted((FIXTURES / "format1").glob("*/work/checkpoints/step-*"))


@pytest.mark.parametrize("folder", EARLIER, ids=lambda folder: f"{folder.parents[2].name}-{folder.name}")
def test_earlier_manifests_are_read_and_written_byte_for_byte(folder: Path):
    manifest, _ = read_manifest(folder)
    assert manifest.to_bytes() == (folder / MANIFEST).read_bytes()
    assert manifest.metrics == manifest.state.metrics()
    assert manifest.selection_cost == manifest.state.selection_cost


def test_there_are_earlier_manifests_with_and_without_a_probe():
    probes = [read_manifest(folder)[0].state.probe for folder in EARLIER]
    assert sorted({probe is None for probe in probes}) == [False, True]


def test_unset_optional_parts_are_not_written():
    keys = loop_state(3).model_dump(mode="json").keys()
    assert keys == LoopState.model_fields.keys() - {"version", "loss_scale", "selected", "probe"}


def test_all_parts_are_read_as_they_were_written():
    probe = Probe.of("train", [0, 2], [[-1.5, -2.0], [-3.0, math.nan]], "fp16")
    assert probe.logps == ((-1.5, -2.0), (-3.0, None))
    state = loop_state(
        3, eval={"loss": 0.4}, evaluations=((2, None), (3, 0.4)), skipped=(1,), probe=probe,
        loss_scale=LossScaleState(factor=4.0, updates=1, overflows=0), selected="0" * 64,
    )  # fmt: skip
    text = json.dumps(state.model_dump(mode="json"), allow_nan=False)
    assert LoopState.model_validate_json(text, strict=True) == state
    assert (state.selection_cost, loop_state(3).selection_cost) == (0.4, None)


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"evaluated": []}, {"step": None}, {"evaluations": None}, {"train": {"loss": math.nan}}]
)
def test_unknown_versions_unknown_keys_and_missing_values_are_refused(change: dict[str, object]):
    document = loop_state(3).model_dump(mode="json") | change
    with pytest.raises(ValidationError):
        LoopState.model_validate_json(json.dumps(document), strict=True)


def test_numbers_that_are_not_finite_become_null():
    assert finite({"a": math.nan, "b": math.inf, "c": 1.0, "d": None}) == {"a": None, "b": None, "c": 1.0, "d": None}
