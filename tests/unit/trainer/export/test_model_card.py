"""The loss in the card of an exported model."""

from typing import Any

import pytest

from dpo_operator.api.method import Method, MethodName
from dpo_trainer.export.model_card import _PAPERS, describe_loss, describe_reward

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({}, "dpo, beta 0.1"),
        ({"labelSmoothing": 0.1, "robust": True}, "dpo, beta 0.1, robust to flipped labels 0.1"),
        ({"name": "ld-dpo", "labelSmoothing": 0.2}, "ld-dpo, beta 0.1, label smoothing 0.2, alpha 0.5"),
        ({"name": "ln-dpo"}, "ln-dpo, beta 5"),
        ({"name": "ipo"}, "ipo, beta 0.1, mean over tokens"),
        ({"name": "kto", "undesirableWeight": 1.5}, "kto, beta 0.1, desirable 1, undesirable 1.5"),
        ({"name": "orpo"}, "orpo, beta 0.1 + 1 × negative log-likelihood of the chosen answer"),
        (
            {"name": "orpo", "nllOver": "all"},
            "orpo, beta 0.1 + 1 × negative log-likelihood of prompt and chosen answer",
        ),
        (
            {"name": "simpo", "weight": 0.5, "plus": [{"name": "hinge", "weight": 2.0}], "nllWeight": 0.2},
            "0.5 × (simpo, beta 2, target margin 0.5) + 2 × (hinge, beta 0.1) + 0.2 × negative log-likelihood of the chosen answer",
        ),
    ],
)
def test_a_card_names_every_term_of_the_loss(method: dict[str, Any], words: str):
    assert describe_loss(Method.model_validate(method)) == words


@pytest.mark.parametrize("name", ["orpo", "simpo"])
def test_rewards_without_a_reference_do_not_mention_one(name: str):
    assert "reference" not in describe_reward(Method.model_validate({"name": name, "plus": [{"name": "dpo"}]}))


@pytest.mark.parametrize(
    ("method", "mean"),
    [({"name": "ipo"}, True), ({"name": "ipo", "reduction": "sum"}, False), ({"name": "ln-dpo"}, True), ({}, False)],
)
def test_means_over_tokens_are_called_means(method: dict[str, Any], mean: bool):
    assert ("mean over an answer's tokens" in describe_reward(Method.model_validate(method))) == mean


def test_every_method_has_its_paper():
    """A method without one would end the export, after all of the training."""
    assert set(_PAPERS) == set(MethodName)
