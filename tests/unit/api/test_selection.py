"""How many pairs a selection keeps and how many steps that takes: known before the run."""

import pytest

from dpo_operator.api.trainingparts.selection import Selection

pytestmark = pytest.mark.unit


def a_selection(**settings: object) -> Selection:
    return Selection.model_validate({"by": "rewardGap"} | settings)


@pytest.mark.parametrize(
    ("settings", "epochs", "steps"),
    [
        # 1,000 pairs in 32 steps: 3 of warm-up, 96 pairs; of 904 left 814 are kept, in 26 steps.
        ({}, 1.0, 29), ({}, 2.0, 58), ({}, 0.5, 15), ({}, 1.5, 44),
        # A later epoch keeps 900 of all.
        ({"refresh": "epoch"}, 3.0, 29 + 2 * 29), ({"by": "scoreGap"}, 1.0, 29),
        ({"warmup": 0.5, "keep": {"quantiles": [0.5, 1.0]}}, 1.0, 16 + 8),
    ],
)  # fmt: skip
def test_steps_are_those_of_the_kept_pairs(settings: dict[str, object], epochs: float, steps: int) -> None:
    assert a_selection(**settings).steps(epochs, 1000, 32) == steps


@pytest.mark.parametrize(
    ("settings", "epochs", "passes"),
    [({}, 3.0, 1), ({"refresh": "epoch"}, 3.0, 3), ({"refresh": "epoch"}, 2.5, 3), ({"by": "scoreGap"}, 3.0, 0)],
)
def test_passes_are_counted(settings: dict[str, object], epochs: float, passes: int) -> None:
    assert a_selection(**settings).passes(epochs) == passes


@pytest.mark.parametrize(
    ("settings", "pairs", "training", "problem"),
    [
        ({}, 1000, {}, ""), ({"by": "scoreGap"}, 2, {}, ""), ({}, 32, {}, "the warm-up of 1 step takes all 32 pairs; lower warmup"),
        ({"keep": {"quantiles": [0.0, 0.001]}}, 200, {}, "keep.quantiles leave none of the 168 pairs"),
        ({"warmup": 0.5}, 1000, {"epochs": 0.5}, "training ends after 15 steps, and the warm-up takes 16"),
        ({}, 1000, {"max_steps": 3}, "training ends after 3 steps, and the warm-up takes 3"), ({}, 1000, {"max_steps": 4}, ""),
    ],
)  # fmt: skip
def test_what_can_not_be_chosen_from_is_refused(
    settings: dict[str, object], pairs: int, training: dict[str, float], problem: str
) -> None:
    found = a_selection(**settings).problem(pairs, 32, **({"epochs": 1.0, "max_steps": None} | training))  # type: ignore[arg-type]
    assert found.startswith(problem)
    assert bool(found) == bool(problem)
