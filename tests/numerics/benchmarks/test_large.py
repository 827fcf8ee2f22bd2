"""A large model is laid out over ranks as the plan says; here a small one, with the same code."""

from typing import Any

import pytest

from benchmarks.large import LLAMA_70B, measure, problems, table
from dpo_operator.api.models.config import shape_of
from dpo_operator.sizing import export as stored
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

SMALL = LLAMA_70B | {"hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 1792, "vocab_size": 2048}  # fmt: skip


def measured(ranks: int) -> list[dict[str, Any]]:
    return measure(SMALL, ranks)


def test_every_part_of_a_small_model_is_as_planned():
    [lines] = on_ranks(1, measured, 16)
    whole = 2.0 * shape_of(SMALL).parameters

    found = {line["part"]: line for line in lines}
    assert len(found) == 6
    assert [name for name in found if "load" in name] == ["load: read by a rank", "load: weights of a rank"]
    # Of 723 parameters of a large model few have padding or a header worth a percent; a small one's manifest and headers are.
    assert {name: round(line["ratio"], 1) for name, line in found.items() if line["ratio"]} == dict.fromkeys(
        [name for name in found if name != "export: memory"], 1.0
    )
    assert [text for text in problems(lines, whole) if "of the plan" in text] == []
    assert table(lines, whole, 16).row_count == 6


def test_a_plan_that_is_off_is_named():
    line = {"part": "a", "least": 80.0, "most": 100.0, "plan": 100.0, "ratio": 0.8, "peak": 0}
    assert problems([line], 1e9) == ["a: 0.800 of the plan"]
    assert problems([line | {"ratio": 0.95}], 1e9) == []
    assert problems([line | {"ratio": None, "peak": 10 << 30}], 10e9) == [
        "this process held 10.0 GiB of a model of 9.3 GiB"
    ]


def test_plan_and_trainer_agree_on_what_is_large():
    [limits] = on_ranks(1, limits_of_the_trainer)
    assert limits == [stored.LARGE, stored.PAIRS_OF_LARGE]


def limits_of_the_trainer() -> list[int]:
    from dpo_trainer.export import check

    return [check.LARGE, check.PAIRS_OF_LARGE]
