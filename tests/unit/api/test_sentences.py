"""Problems of a job as sentences."""

from typing import Any

import pytest
from pydantic import ValidationError

from dpo_operator.api.text import MAX_FOUND, sentences
from dpo_operator.api.types import DPOJobSpec

pytestmark = pytest.mark.unit

SPEC = {"model": {"name": "org/model"}, "data": {"train": {"source": "org/pairs"}}}


@pytest.mark.parametrize(
    ("part", "start", "end"),
    [
        ({"nodes": "two"}, "nodes: ", "(found 'two')"),
        ({"failurePolicy": {"rules": [{}, {"action": "Stop"}]}}, "failurePolicy.rules[1].action: ", "(found 'Stop')"),
        ({"training": [1]}, "training: ", "(found [1])"),
        ({"model": {}}, "model.name: ", "Field required"),
        ({"model": {"name": "m", "nme": "n"}}, "model.nme: ", "Extra inputs are not permitted (found 'n')"),
        ({"managedBy": "x" * 200}, "managedBy: ", "…)"),
    ],
)
def test_a_sentence_names_the_field_and_what_was_found(part: dict[str, Any], start: str, end: str):
    with pytest.raises(ValidationError) as error:
        DPOJobSpec.model_validate(SPEC | part)
    lines = [line for line in sentences(error.value) if line.startswith(start)]
    assert lines
    assert lines[0].endswith(end)
    assert len(lines[0]) < MAX_FOUND + 140
