"""What is logged: sums that add up however a batch is split, and figures that only say what the pairs behind them say."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo_operator.api.method import Method
from dpo_trainer.losses.metrics import Totals, means, sums
from dpo_trainer.losses.objective import Logps, Objective

pytestmark = pytest.mark.unit

# An example: policy and reference log-probs of both answers, their tokens, and whether it counts.
Example = tuple[tuple[float, float], tuple[float, float], tuple[int, int], bool]

METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo", "nllWeight": 0.5},
    "orpo": {"name": "orpo"},
    "kto": {"name": "kto"},
}


def objective(name: str = "dpo") -> Objective:
    return Objective(Method.model_validate(METHODS[name]))


def sums_of(name: str, examples: Sequence[Example], kl: float = 0.2) -> dict[str, float]:
    chosen = objective(name)
    policy, reference, tokens, counts = (list(column) for column in zip(*examples, strict=True))
    logps = Logps(
        policy=torch.tensor(policy, dtype=torch.float64),
        policy_head=torch.tensor(policy, dtype=torch.float64),
        tokens=torch.tensor(tokens),
        reference=torch.tensor(reference, dtype=torch.float64),
        reference_head=torch.tensor(reference, dtype=torch.float64),
    )
    point = torch.tensor(kl, dtype=torch.float64) if chosen.needs_kl else None
    found = sums(chosen, logps, chosen.loss(logps, point), point, torch.tensor(counts))
    assert all(value.dtype == torch.float64 and value.shape == () for value in found.values())
    return {key: value.item() for key, value in found.items()}


def means_of(name: str, examples: Sequence[Example]) -> dict[str, float]:
    return means(sums_of(name, examples), 0.2 if name == "kto" else None)


def a_pair(margin: float, *, tokens: tuple[int, int] = (3, 5), counts: bool = True) -> Example:
    """A pair with a DPO reward margin, all of it in the chosen answer."""
    return ((-20.0 + 10 * margin, -30.0), (-20.0, -30.0), tokens, counts)


# Two decimals: nearly equal rewards would make the right answer a matter of rounding.
logps = st.integers(-8000, -10).map(lambda x: x / 100)
examples = st.tuples(
    st.tuples(logps, logps), st.tuples(logps, logps), st.tuples(*[st.integers(1, 400)] * 2), st.just(True)
)
unpaired = st.tuples(examples, st.sampled_from([(1, 1), (1, 0), (0, 1)])).map(
    lambda drawn: (*drawn[0][:2], tuple(n * there for n, there in zip(drawn[0][2], drawn[1], strict=True)), True)
)


def test_a_win_a_loss_and_a_tie_by_hand():
    # beta 0.1: rewards of the chosen answers 1, -1 and 0; of the rejected ones 0
    found = means_of("dpo", [a_pair(1.0), a_pair(-1.0), a_pair(0.0)])
    assert found["rewards/chosen"] == pytest.approx(0)
    assert found["rewards/rejected"] == 0
    assert found["rewards/margins"] == pytest.approx(0)
    assert found["rewards/accuracies"] == pytest.approx(1 / 3)
    assert found["logps/chosen"] == pytest.approx(-20)
    assert found["logps/rejected"] == -30
    assert found["response_tokens/chosen"] == 3
    assert found["response_tokens/rejected"] == 5
    # Log-ratios of 10, -10 and 0 nats over 3 tokens
    assert found["logratio_per_token/chosen"] == pytest.approx(0)
    # Likelihoods of 10, 30 and 20 nats over 3 tokens
    assert found["nll_loss"] == pytest.approx(60 / 9)
    losses = [math.log1p(math.exp(-margin)) + 0.5 * nll for margin, nll in ((1, 10 / 3), (-1, 10), (0, 20 / 3))]
    assert found["loss"] == pytest.approx(sum(losses) / 3)


def test_metrics_that_belong_to_a_method_come_with_it():
    dpo, orpo, kto = (means_of(name, [a_pair(1.0), a_pair(0.5)]) for name in METHODS)
    assert "logratio_per_token/chosen" in dpo
    assert "logratio_per_token/chosen" not in orpo
    assert {"log_odds_ratio", "log_odds_chosen", "nll_loss"} <= orpo.keys()
    assert not {"log_odds_ratio", "nll_loss"} & kto.keys()
    assert kto["kl"] == 0.2
    assert "kl" not in dpo
    # Mean log-probs of -10/3 and -6 per token, then -5 and -6: the odds' logarithms, and log σ of them
    odds = [a - b - math.log(-math.expm1(a)) + math.log(-math.expm1(b)) for a, b in ((-10 / 3, -6), (-5, -6))]
    assert orpo["log_odds_chosen"] == pytest.approx(sum(odds) / 2)
    assert orpo["log_odds_ratio"] == pytest.approx(-sum(math.log1p(math.exp(-x)) for x in odds) / 2)


@given(st.lists(unpaired, min_size=1, max_size=8), st.data())
@pytest.mark.parametrize("name", METHODS)
def test_the_sums_of_any_split_add_up_to_the_same_metrics(name: str, drawn: list[Example], data: st.DataObject):
    if name != "kto":
        drawn = [(*example[:2], tuple(max(1, n) for n in example[2]), True) for example in drawn]  # type: ignore[misc]
    whole = sums_of(name, drawn)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(drawn) - 1)))) if len(drawn) > 1 else []
    parts = [sums_of(name, drawn[a:b]) for a, b in zip([0, *cuts], [*cuts, len(drawn)], strict=True)]
    # Stacked without their names in the training loop, so the order matters.
    assert all(list(part) == list(whole) for part in parts)
    added = {key: math.fsum(part[key] for part in parts) for key in whole}
    assert added == pytest.approx(whole, rel=1e-9, abs=1e-9)
    kl = 0.2 if name == "kto" else None
    # What is subtracted in a correlation may cancel, so it has fewer digits than the rest.
    assert means(added, kl) == pytest.approx(means(whole, kl), rel=1e-6, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e300])
def test_an_example_that_does_not_count_changes_nothing(name: str, bad: float):
    real = [a_pair(1.0), a_pair(-0.3, tokens=(7, 2))]
    dummy: Example = ((bad, -3.0), (bad, bad), (9, 9), False)
    assert sums_of(name, [*real, dummy]) == sums_of(name, real)


def test_nothing_but_dummies_gives_no_metrics_and_no_error():
    found = means_of("dpo", [a_pair(1.0, counts=False)])
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_examples_whose_loss_is_not_finite_are_counted(bad: float):
    broken: Example = ((-bad, -3.0), (-2.0, -4.0), (2, 2), True)
    assert sums_of("dpo", [a_pair(1.0), broken, broken])["broken"] == 2
    assert sums_of("dpo", [a_pair(1.0)])["broken"] == 0


# Accuracy.


def test_a_tie_is_not_right():
    # As before the first update, where nothing is preferred.
    assert means_of("dpo", [a_pair(0.0)] * 4)["rewards/accuracies"] == 0


def test_unpaired_answers_are_judged_by_kto_reference_point():
    # beta 0.1, kl 0.2: the point is a reward of 0.02. Rewards of 0.1 and 0.01 for desirable answers, then undesirable.
    def alone(ratio: float, side: int) -> Example:
        policy = [-9.0, -9.0]
        policy[side] += ratio
        return ((policy[0], policy[1]), (-9.0, -9.0), ((4, 0), (0, 4))[side], True)

    found = means_of("kto", [alone(1.0, 0), alone(0.1, 0), alone(1.0, 1), alone(0.1, 1), alone(0.05, 1)])
    # Right: the first, the fourth and the fifth.
    assert found["rewards/accuracies"] == pytest.approx(3 / 5)
    assert found["rewards/chosen"] == pytest.approx(0.055)
    assert found["rewards/rejected"] == pytest.approx((0.1 + 0.01 + 0.005) / 3)
    assert found["rewards/margins"] == pytest.approx(found["rewards/chosen"] - found["rewards/rejected"])
    assert math.isnan(found["margin_length_correlation"])


def test_in_a_mixture_pairs_are_ranked_and_single_answers_judged():
    pair = a_pair(-1.0)
    alone: Example = ((-8.0, 0.0), (-9.0, 0.0), (4, 0), True)
    found = sums_of("kto", [pair, alone])
    assert (found["ranked"], found["right"]) == (2, 1)
    # Three answers are three units of the loss.
    assert found["units"] == 3
    assert (found["answers/chosen"], found["answers/rejected"]) == (2, 1)


def test_one_kind_of_answer_alone_has_no_margin():
    found = means_of("kto", [((-8.0, 0.0), (-9.0, 0.0), (4, 0), True)])
    assert math.isnan(found["rewards/rejected"])
    assert math.isnan(found["rewards/margins"])
    assert found["loss"] == pytest.approx(1 / (1 + math.exp(0.08)))


def test_likelihood_is_a_mean_over_chosen_answers():
    # An objective that KTO jobs may not ask for, but its figure must not depend on whether answers come in pairs.
    chosen = Objective(Method(name="kto", nll_weight=1.0))
    one = Logps(
        policy=torch.tensor([[-8.0, 0.0], [0.0, -7.0]]).double(),
        policy_head=torch.zeros(2, 2).double(),
        tokens=torch.tensor([[4, 0], [0, 4]]),
        reference=torch.zeros(2, 2).double(),
        reference_head=torch.zeros(2, 2).double(),
    )
    kl = torch.zeros(()).double()
    found = sums(chosen, one, chosen.loss(one, kl), kl, torch.tensor([True, True]))
    assert means({key: value.item() for key, value in found.items()}, 0.0)["nll_loss"] == 2.0


# Correlation of margin and length.


@given(st.lists(examples, min_size=2, max_size=20))
def test_correlation_equals_numpys(drawn: list[Example]):
    margins = [0.1 * ((p[0] - r[0]) - (p[1] - r[1])) for p, r, _, _ in drawn]
    longer = [tokens[0] - tokens[1] for _, _, tokens, _ in drawn]
    found = means_of("dpo", drawn)["margin_length_correlation"]
    # Margins are whole thousandths, so they either vary by more than rounding or not at all.
    if np.std(margins) < 1e-5 or np.std(longer) == 0:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(np.corrcoef(margins, longer)[0, 1], abs=1e-6)


def test_correlation_by_hand():
    by_length = [a_pair(0.1 * n, tokens=(10 + n, 10)) for n in range(4)]
    assert means_of("dpo", by_length)["margin_length_correlation"] == pytest.approx(1)
    against = [a_pair(-0.1 * n, tokens=(10 + n, 10)) for n in range(4)]
    assert means_of("dpo", against)["margin_length_correlation"] == pytest.approx(-1)


def test_rounding_errors_correlate_with_nothing():
    # At the first step policy and reference are the same model: margins of 1e-8 are what rounding left of 0.
    rounding = [a_pair(1e-8 * n, tokens=(10 + n, 10)) for n in range(6)]
    assert math.isnan(means_of("dpo", rounding)["margin_length_correlation"])
    # A margin that is the same everywhere but for rounding has no correlation either, however large it is.
    same = [a_pair(3.0 + 1e-8 * n, tokens=(10 + n, 10)) for n in range(6)]
    assert math.isnan(means_of("dpo", same)["margin_length_correlation"])


@pytest.mark.parametrize("pairs", [1, 2])
def test_what_does_not_vary_correlates_with_nothing(pairs: int):
    assert math.isnan(means_of("dpo", [a_pair(float(n)) for n in range(pairs)])["margin_length_correlation"])


def test_totals_add_up_micro_batches_and_then_ranks():
    totals = Totals()
    for loss, pairs in ((0.5, 2), (0.25, 1)):
        totals.add({"loss": torch.tensor(loss), "pairs": torch.tensor(pairs)}, torch.device("cpu"))
    # Two ranks with the same figures.
    assert totals.over_ranks(lambda values: 2 * values, stop=True) == {"loss": 1.5, "pairs": 6.0, "stop": 2.0}
