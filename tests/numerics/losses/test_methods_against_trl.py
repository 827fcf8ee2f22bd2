"""Each loss and its gradient equal TRL's on the same token ids and weights; where TRL defines another, the difference is held.

The policy is not the reference, so no term of any loss vanishes. TRL sees one batch where ours is cut into micro-batches.
"""

from typing import Any

import numpy as np
import pytest

from tests.numerics import family, trl_side
from tests.numerics.ranks import on_ranks
from tests.numerics.trl_side import TrlCase

pytestmark = pytest.mark.numerics

DATA = {
    "pairs": family.examples("======="),
    "level": family.examples("=====", level=True),
    "unpaired": family.examples("+-++-+-++"),
    # The policy expects less of these words than the reference does, so KTO's reference point is clamped at 0.
    "unloved": family.examples("+-+-+", words=(60, 96)),
}


def dpo(loss: str | list[str] = "sigmoid", *, batch: int = 0, **settings: Any) -> TrlCase:
    return TrlCase("dpo", {"loss_type": loss, "beta": 0.1, **settings}, batch)


def kto(desirable: float = 1.0, undesirable: float = 1.0, beta: float = 0.1) -> TrlCase:
    return TrlCase("kto", {"beta": beta, "desirable_weight": desirable, "undesirable_weight": undesirable})


def cpo(loss: str, **settings: Any) -> TrlCase:
    return TrlCase("cpo", {"loss_type": loss, "cpo_alpha": 0.0, **settings})


# What both define alike: spec.method, TRL's settings, the data.
EQUAL: dict[str, tuple[dict[str, Any], TrlCase, str]] = {
    "dpo": ({"name": "dpo"}, dpo(), "pairs"),
    "dpo beta 0.5": ({"name": "dpo", "beta": 0.5}, dpo(beta=0.5), "pairs"),
    "robust": (
        {"name": "dpo", "robust": True, "labelSmoothing": 0.2}, dpo("robust", label_smoothing=0.2), "pairs",
    ),
    # TRL's sigmoid loss has no label smoothing since 0.29. Its "aot" has, on ratios sorted over the batch: with one pair in
    # a batch there is nothing to sort, and it is conservative DPO.
    "cdpo": ({"name": "dpo", "labelSmoothing": 0.2}, dpo("aot", label_smoothing=0.2, batch=1), "pairs"),
    "hinge": ({"name": "hinge"}, dpo("hinge"), "pairs"),
    "ipo": ({"name": "ipo"}, dpo("ipo"), "pairs"),
    "ln-dpo": ({"name": "ln-dpo", "beta": 5.0}, dpo("sigmoid_norm", beta=5.0), "pairs"),
    "ld-dpo": ({"name": "ld-dpo"}, dpo(ld_alpha=0.5), "pairs"),
    "ld-dpo 0": ({"name": "ld-dpo", "lengthDesensitization": 0.0}, dpo(ld_alpha=0.0), "pairs"),
    "dpo + nll, pair by pair": (
        {"name": "dpo", "nllWeight": 0.5}, dpo(["sigmoid", "sft"], loss_weights=[1.0, 0.5], batch=1), "pairs",
    ),
    "dpo + nll, equal lengths": (
        {"name": "dpo", "nllWeight": 0.5}, dpo(["sigmoid", "sft"], loss_weights=[1.0, 0.5]), "level",
    ),
    "dpo + hinge + ipo": (
        {"name": "dpo", "weight": 0.8, "plus": [{"name": "hinge", "weight": 0.5}, {"name": "ipo", "weight": 0.02}]},
        dpo(["sigmoid", "hinge", "ipo"], loss_weights=[0.8, 0.5, 0.02]), "pairs",
    ),
    "robust + ln-dpo + nll": (
        {
            "name": "dpo", "robust": True, "labelSmoothing": 0.1, "nllWeight": 0.2,
            "plus": [{"name": "ln-dpo", "beta": 0.1, "weight": 2.0}],
        },
        dpo(["robust", "sigmoid_norm", "sft"], loss_weights=[1.0, 2.0, 0.2], label_smoothing=0.1, batch=1), "pairs",
    ),
    # Our answers to other prompts come from the example before, TRL's from the place before in a batch: all data in one
    # batch makes that the same.
    "kto, pairs": ({"name": "kto"}, kto(), "pairs"),
    "kto, pairs, weights": (
        {"name": "kto", "beta": 0.3, "desirableWeight": 0.6, "undesirableWeight": 1.7}, kto(0.6, 1.7, 0.3), "pairs",
    ),
    "kto, unpaired": ({"name": "kto"}, kto(), "unpaired"),
    "kto, unpaired, weights": (
        {"name": "kto", "desirableWeight": 1.0, "undesirableWeight": 2.5}, kto(1.0, 2.5), "unpaired",
    ),
    "kto, unpaired, one weight 0": (
        {"name": "kto", "desirableWeight": 2.0, "undesirableWeight": 0.0}, kto(2.0, 0.0), "unpaired",
    ),
    "kto, clamped": ({"name": "kto"}, kto(), "unloved"),
    "orpo, pair by pair": ({"name": "orpo", "nllOver": "all"}, TrlCase("orpo", {"beta": 0.1}, 1), "pairs"),
    "orpo, equal lengths": (
        {"name": "orpo", "nllOver": "all", "beta": 0.7}, TrlCase("orpo", {"beta": 0.7}), "level",
    ),
    "simpo": (
        {"name": "simpo", "margin": 0.5, "beta": 2.5}, cpo("simpo", beta=2.5, simpo_gamma=0.5), "pairs",
    ),
    "simpo, label smoothing": (
        {"name": "simpo", "marginRatio": 0.4, "labelSmoothing": 0.1},
        cpo("simpo", beta=2.0, simpo_gamma=0.8, label_smoothing=0.1), "pairs",
    ),
}  # fmt: skip

# What TRL defines otherwise; the tests below say how.
OTHER: dict[str, tuple[dict[str, Any], TrlCase, str]] = {
    "cdpo": ({"name": "dpo", "labelSmoothing": 0.2}, dpo(label_smoothing=0.2), "pairs"),
    "dpo + nll": ({"name": "dpo", "nllWeight": 0.5}, dpo(["sigmoid", "sft"], loss_weights=[1.0, 0.5]), "pairs"),
    "orpo": ({"name": "orpo"}, TrlCase("orpo", {"beta": 0.1}, 1), "pairs"),
    "simpo + nll": ({"name": "simpo", "margin": 0.5}, TrlCase("cpo", {"loss_type": "simpo", "beta": 2.0}, 1), "pairs"),
}

LOGGED = ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Of each case what ours and what TRL gives; EQUAL's names as they are, OTHER's after "other "."""
    folder = tmp_path_factory.mktemp("trl")
    policy, reference = folder / "policy", folder / "reference"
    on_ranks(1, family.two_models, policy, reference)
    cases = EQUAL | {f"other {name}": case for name, case in OTHER.items()}
    ours = {name: (method, data) for name, (method, _, data) in cases.items()}
    theirs = {name: (case, data) for name, (_, case, data) in cases.items()}
    [[mine]] = on_ranks(1, family.losses_and_gradients, ours, DATA, policy, reference)
    [trl] = on_ranks(1, trl_side.losses_and_gradients, theirs, DATA, policy, reference, folder / "output")
    return {name: (mine[name], trl[name]) for name in cases}


def largest(gradient: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(value).max()) for value in gradient.values())


def gradient_error(mine: dict[str, Any], trl: dict[str, Any]) -> float:
    """Largest difference of an element, as a share of the largest element where that is below 1."""
    assert mine["gradient"].keys() == trl["gradient"].keys()
    difference = {name: value - trl["gradient"][name] for name, value in mine["gradient"].items()}
    return largest(difference) / min(1.0, largest(trl["gradient"]))


@pytest.mark.parametrize("name", EQUAL)
def test_loss_and_gradient_equal_trl(name: str, both: dict[str, Any]):
    mine, trl = both[name]
    print(
        f"{name}: loss {mine['loss']:.6f}, off by {abs(mine['loss'] - trl['loss']):.1e}; "
        f"gradient {largest(mine['gradient']):.3f}, off by {gradient_error(mine, trl):.1e}"
    )
    assert mine["loss"] == pytest.approx(trl["loss"], abs=1e-5)
    assert gradient_error(mine, trl) < 1e-4
    # A policy in which the loss has no slope would pass with any loss.
    assert largest(trl["gradient"]) > 1e-3


@pytest.mark.parametrize("name", [name for name, (_, case, _) in EQUAL.items() if case.trainer == "kto"])
def test_the_reference_point_of_kto_equals_trl(name: str, both: dict[str, Any]):
    mine, trl = both[name]
    assert mine["metrics"]["kl"] == pytest.approx(trl["metrics"]["kl"], abs=1e-5)
    assert (trl["metrics"]["kl"] == 0) == (name == "kto, clamped")


@pytest.mark.parametrize("name", ["dpo", "dpo beta 0.5", "hinge", "ld-dpo", "kto, pairs", "kto, unpaired, weights"])
def test_rewards_and_log_probs_equal_trl(name: str, both: dict[str, Any]):
    mine, trl = both[name]
    keys = LOGGED[:3] if name == "ld-dpo" else LOGGED  # TRL's log-probs of LD-DPO are the weighted ones
    for key in keys:
        assert mine["metrics"][key] == pytest.approx(trl["metrics"][key], abs=1e-5, rel=1e-6), key


def test_metrics_of_orpo_equal_trl(both: dict[str, Any]):
    mine, trl = both["orpo, equal lengths"]
    for key in ("nll_loss", "log_odds_ratio", "log_odds_chosen", "rewards/chosen", "rewards/margins"):
        assert mine["metrics"][key] == pytest.approx(trl["metrics"][key], abs=1e-5), key


def test_trl_ignores_label_smoothing_of_dpo(both: dict[str, Any]):
    """Conservative DPO is (1-e) times the loss of the label plus e times that of the other label; TRL's is DPO."""
    mine, trl = both["other cdpo"]
    plain, _ = both["dpo"]
    assert trl["loss"] == pytest.approx(plain["loss"], abs=1e-5)
    # log sigmoid(-x) = log sigmoid(x) - x, so smoothing adds e times the mean margin of rewards.
    assert mine["loss"] - plain["loss"] == pytest.approx(0.2 * mine["metrics"]["rewards/margins"], abs=1e-5)
    assert abs(mine["loss"] - trl["loss"]) > 1e-3


def test_likelihood_is_a_mean_over_pairs_not_over_tokens_of_a_batch(both: dict[str, Any]):
    """In TRL a pair with a long answer weighs more, and its weight depends on which pairs share its micro-batch."""
    mine, trl = both["other dpo + nll"]
    plain, _ = both["dpo"]
    lengths = DATA["pairs"].lengths[:, 1]
    mean_logp = mine["metrics"]["logps/chosen"]
    by_token = -mean_logp * len(lengths) / lengths.sum()
    assert trl["loss"] == pytest.approx(plain["loss"] + 0.5 * by_token, abs=1e-5)
    assert mine["loss"] == pytest.approx(plain["loss"] + 0.5 * mine["metrics"]["nll_loss"], abs=1e-6)
    assert abs(mine["loss"] - trl["loss"]) > 1e-3


def test_likelihood_of_orpo_is_that_of_the_answer_unless_asked_otherwise(both: dict[str, Any]):
    """TRL's is over prompt and answer: what nllOver: all gives."""
    mine, trl = both["other orpo"]
    whole, _ = both["orpo, pair by pair"]
    assert trl["loss"] == pytest.approx(whole["loss"], abs=1e-5)
    difference = mine["metrics"]["nll_loss"] - whole["metrics"]["nll_loss"]
    assert mine["loss"] - trl["loss"] == pytest.approx(difference, abs=1e-5)
    assert abs(difference) > 1e-3


def test_simpo_has_no_likelihood_unless_asked(both: dict[str, Any]):
    """TRL's CPO trainer adds that of the chosen answer to SimPO's loss when cpo_alpha is left at 1."""
    mine, trl = both["other simpo + nll"]
    assert mine["loss"] < trl["loss"] - 1
    assert "nll_loss" not in mine["metrics"]
    assert trl["loss"] - mine["loss"] == pytest.approx(trl["metrics"]["nll_loss"], abs=1e-5)
