"""A job's loss as one object: defaults, what it needs, what it adds up, and what it says before the first update."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo_operator.api.method import Method, MethodName
from dpo_trainer.losses import formulas
from dpo_trainer.losses.objective import Logps, Objective

pytestmark = pytest.mark.unit

# Two pairs: answers of 2 and 4 tokens, and of 3 and 1.
TOKENS = [[2, 4], [3, 1]]
POLICY = [[-4.0, -10.0], [-9.0, -2.0]]
REFERENCE = [[-5.0, -8.0], [-6.0, -2.5]]
# Of these, over as many tokens as the shorter answer has.
POLICY_HEAD = [[-4.0, -6.0], [-1.0, -2.0]]
REFERENCE_HEAD = [[-5.0, -3.0], [-2.0, -2.5]]
KL = torch.tensor(0.5, dtype=torch.float64)

# What each loss compares: chosen minus rejected, worked out from the numbers above.
MARGINS: dict[str, list[float]] = {
    "dpo": [1 - -2, -3 - 0.5],
    "hinge": [1 - -2, -3 - 0.5],
    "kto": [1 - -2, -3 - 0.5],
    "ipo": [1 / 2 - -2 / 4, -3 / 3 - 0.5 / 1],
    "ln-dpo": [1 / 2 - -2 / 4, -3 / 3 - 0.5 / 1],
    # Half of whole answer and half of head: the rejected ones -2 and -3, the chosen ones -3 and 1.
    "ld-dpo": [1 - (-2 - 3) / 2, (-3 + 1) / 2 - 0.5],
    "simpo": [-4 / 2 - -10 / 4, -9 / 3 - -2 / 1],
    "orpo": [-4 / 2 - -10 / 4, -9 / 3 - -2 / 1],
    "reward-model": [-4 - -10, -9 - -2],
}
BETAS = {name: {"ln-dpo": 5.0, "simpo": 2.0, "reward-model": 1.0}.get(name, 0.1) for name in MARGINS}


def a_method(name: str = "dpo", **settings: Any) -> Objective:
    return Objective(Method.model_validate({"name": name, **settings}))


def some_logps(**changes: Any) -> Logps:
    def table(values: list[list[float]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    fields = {
        "policy": table(POLICY), "policy_head": table(POLICY_HEAD), "tokens": torch.tensor(TOKENS),
        "reference": table(REFERENCE), "reference_head": table(REFERENCE_HEAD),
    }  # fmt: skip
    return Logps(**{**fields, **changes})


def loss_of(objective: Objective, logps: Logps) -> list[float]:
    return objective.loss(logps, KL if objective.needs_kl else None).tolist()


def test_every_method_has_its_usual_beta():
    assert {name.value: Method(name=name).strength for name in MethodName} == BETAS


@pytest.mark.parametrize("name", MARGINS)
def test_rewards_are_beta_times_what_the_loss_compares(name: str):
    rewards = a_method(name).rewards(some_logps())
    margin = rewards[:, 0] - rewards[:, 1]
    assert margin.tolist() == pytest.approx([BETAS[name] * value for value in MARGINS[name]], rel=1e-12)


@pytest.mark.parametrize("name", [name for name in MARGINS if name not in ("kto", "orpo")])
def test_the_loss_sees_the_margin_of_the_rewards(name: str):
    logits = [BETAS[name] * margin for margin in MARGINS[name]]
    formulas = {
        "ipo": lambda x: (x / 0.1 - 1 / (2 * 0.1)) ** 2,
        "hinge": lambda x: max(0.0, 1 - x),
        # gamma = 0.25 beta = 0.5
        "simpo": lambda x: math.log1p(math.exp(0.5 - x)),
    }
    formula = formulas.get(name, lambda x: math.log1p(math.exp(-x)))
    assert loss_of(a_method(name), some_logps()) == pytest.approx([formula(x) for x in logits], rel=1e-12)


def test_the_better_reward_has_the_better_odds():
    # ORPO logs mean log-probs, and odds rise with them: p/(1-p) of e^-2 against e^-2.5, and of e^-3 against e^-2.
    def log_odds(logp: float) -> float:
        return logp - math.log(1 - math.exp(logp))

    ratios = [log_odds(-2) - log_odds(-2.5), log_odds(-3) - log_odds(-2)]
    objective = a_method("orpo", nllWeight=0.0)
    assert loss_of(objective, some_logps()) == pytest.approx([0.1 * math.log1p(math.exp(-r)) for r in ratios])
    rewards = objective.rewards(some_logps())
    assert ((rewards[:, 0] > rewards[:, 1]) == (torch.tensor(ratios) > 0)).all()


def test_kto_adds_up_the_answers_of_an_example():
    # beta 0.1, kl 0.5, log-ratios 1 and -2, -3 and 0.5: σ(β (kl - r)) of the chosen, σ(β (r - kl)) of the rejected
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    parts = [[sigmoid(0.1 * -0.5), sigmoid(0.1 * -2.5)], [sigmoid(0.1 * 3.5), sigmoid(0.1 * 0.0)]]
    assert loss_of(a_method("kto"), some_logps()) == pytest.approx([sum(pair) for pair in parts], rel=1e-12)
    weighted = a_method("kto", desirableWeight=2.0, undesirableWeight=0.5)
    assert loss_of(weighted, some_logps()) == pytest.approx([2 * a + b / 2 for a, b in parts], rel=1e-12)


def test_a_missing_answer_costs_nothing_and_is_no_unit():
    tokens = torch.tensor([[2, 4], [3, 0], [0, 1]])
    objective = a_method("kto")
    assert objective.units(tokens) == 4
    assert a_method("dpo").units(tokens) == 3

    both = some_logps()
    alone = some_logps(tokens=torch.tensor([[2, 0], [0, 1]]))
    each = formulas.kto_loss(both.log_ratios, KL, beta=0.1)
    assert loss_of(objective, alone) == [each[0, 0].item(), each[1, 1].item()]


def test_a_weight_of_zero_leaves_out_one_kind_of_answer():
    found = loss_of(a_method("kto", undesirableWeight=0.0), some_logps(tokens=torch.tensor([[0, 4], [3, 1]])))
    assert found[0] == 0
    assert found[1] == pytest.approx(1 / (1 + math.exp(-0.35)))


def test_ipo_compares_sums_when_asked():
    # β 0.1: (3 - 5)² and (-3.5 - 5)²
    assert loss_of(a_method("ipo", reduction="sum"), some_logps()) == pytest.approx([4.0, 72.25])
    rewards = a_method("ipo", reduction="sum").rewards(some_logps())
    assert (rewards[:, 0] - rewards[:, 1]).tolist() == pytest.approx([0.3, -0.35])


def test_ld_dpo_is_dpo_at_one_and_sees_heads_alone_at_zero():
    dpo = a_method("dpo")
    assert loss_of(a_method("ld-dpo", lengthDesensitization=1.0), some_logps()) == loss_of(dpo, some_logps())
    heads = some_logps(
        policy=torch.tensor(POLICY_HEAD, dtype=torch.float64), reference=torch.tensor(REFERENCE_HEAD).double()
    )
    assert loss_of(a_method("ld-dpo", lengthDesensitization=0.0), some_logps()) == loss_of(dpo, heads)


@pytest.mark.parametrize(
    ("settings", "gamma"),
    [({}, 0.5), ({"beta": 10.0}, 2.5), ({"marginRatio": 0.3, "beta": 10.0}, 3.0), ({"margin": 0.7, "beta": 10.0}, 0.7)],
)
def test_simpos_target_is_a_share_of_beta_or_itself(settings: dict[str, Any], gamma: float):
    beta = settings.get("beta", 2.0)
    expected = [math.log1p(math.exp(gamma - beta * margin)) for margin in MARGINS["simpo"]]
    assert loss_of(a_method("simpo", **settings), some_logps()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["dpo", "ld-dpo", "ln-dpo"])
def test_label_smoothing_and_robustness_reach_the_formula(name: str):
    margins = torch.tensor(MARGINS[name], dtype=torch.float64)
    for robust, formula in ((False, formulas.dpo_loss), (True, formulas.robust_dpo_loss)):
        found = loss_of(a_method(name, labelSmoothing=0.2, robust=robust), some_logps())
        assert found == pytest.approx(formula(margins, beta=BETAS[name], label_smoothing=0.2).tolist(), rel=1e-12)


# Likelihood and combinations.


def test_likelihood_of_the_chosen_answer_per_token():
    # 4 nats over 2 tokens, 9 over 3
    with_it, without = a_method("dpo", nllWeight=0.5), a_method("dpo")
    expected = [a + 0.5 * b for a, b in zip(loss_of(without, some_logps()), [2.0, 3.0], strict=True)]
    assert loss_of(with_it, some_logps()) == pytest.approx(expected, rel=1e-12)
    assert without.method.likelihood_weight == 0


def test_a_reward_models_margin_is_taken_from_the_difference():
    expected = [math.log1p(math.exp(0.5 - difference)) for difference in MARGINS["reward-model"]]
    objective = a_method("reward-model", margin=0.5)
    assert loss_of(objective, some_logps(reference=None, reference_head=None)) == pytest.approx(expected, rel=1e-12)
    assert [objective.needs_reference, objective.starts_level, objective.predicts_tokens] == [False] * 3


def test_a_reward_models_margin_grows_with_the_scores_of_the_pair():
    gaps = torch.tensor([3.0, -2.0], dtype=torch.float64)
    # 0.5 + 0.25 * 3; the second pair's scores contradict its label.
    margins = [1.25, 0.5]
    expected = [math.log1p(math.exp(m - d)) for m, d in zip(margins, MARGINS["reward-model"], strict=True)]
    objective = a_method("reward-model", margin=0.5, marginPerScore=0.25)
    found = loss_of(objective, some_logps(reference=None, reference_head=None, score_gaps=gaps))
    assert found == pytest.approx(expected, rel=1e-12)


def test_orpo_is_built_on_likelihood():
    # The odds ratio's term, beta times it, is added to the chosen answer's likelihood with weight 1.
    bare = loss_of(a_method("orpo", nllWeight=0.0), some_logps())
    assert loss_of(a_method("orpo"), some_logps()) == pytest.approx([bare[0] + 2.0, bare[1] + 3.0], rel=1e-12)


def test_likelihood_over_all_takes_in_the_prompt():
    # (4 + 6) nats over (2 + 3) tokens, (9 + 3) over (3 + 1)
    objective = a_method("orpo", nllOver="all")
    logps = some_logps(prompt=torch.tensor([-6.0, -3.0]).double(), prompt_tokens=torch.tensor([3, 1]))
    assert objective.needs_prompt
    assert objective.nll(logps).tolist() == pytest.approx([2.0, 3.0])
    # The same numbers without the prompt would be 2 and 3 as well; one token less in it tells them apart.
    shorter = some_logps(prompt=torch.tensor([-6.0, -3.0]).double(), prompt_tokens=torch.tensor([2, 0]))
    assert objective.nll(shorter).tolist() == pytest.approx([2.5, 4.0])


@given(st.lists(st.sampled_from([n for n in MARGINS if n != "kto"]), min_size=2, max_size=4), st.data())
def test_a_combination_is_the_weighted_sum_of_its_losses(names: list[str], data: st.DataObject):
    weights = [data.draw(st.floats(0.1, 10)) for _ in names]
    likelihood = data.draw(st.sampled_from([0.0, 0.3]))
    whole = a_method(
        names[0],
        weight=weights[0],
        nllWeight=likelihood,
        plus=[{"name": name, "weight": weight} for name, weight in zip(names[1:], weights[1:], strict=True)],
    )
    parts = [torch.tensor(loss_of(a_method(name, nllWeight=0.0), some_logps())) for name in names]
    expected = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    expected = expected + likelihood * torch.tensor([2.0, 3.0])
    assert loss_of(whole, some_logps()) == pytest.approx(expected.tolist(), rel=1e-6)
    # Rewards are those of the first loss, whatever its weight.
    assert torch.equal(whole.rewards(some_logps()), a_method(names[0]).rewards(some_logps()))


def test_ktos_weight_scales_it():
    single = loss_of(a_method("kto"), some_logps())
    assert loss_of(a_method("kto", weight=3.0), some_logps()) == pytest.approx([3 * value for value in single])


# What is computed for a method.


@pytest.mark.parametrize("name", MARGINS)
def test_only_methods_that_compare_with_it_need_a_reference(name: str):
    assert a_method(name).needs_reference == (name not in ("orpo", "simpo", "reward-model"))
    assert a_method(name).needs_kl == (name == "kto")
    assert not a_method(name).needs_prompt


def test_an_added_loss_brings_its_needs_along():
    assert a_method("simpo", plus=[{"name": "dpo"}]).needs_reference
    assert not a_method("simpo", plus=[{"name": "orpo"}]).needs_reference
    # Without a weight the likelihood is not computed, over whatever tokens.
    assert not a_method("dpo", nllOver="all").needs_prompt
    assert a_method("dpo", nllOver="all", nllWeight=0.1).needs_prompt


@pytest.mark.parametrize("name", ["orpo", "simpo"])
def test_reference_free_methods_never_use_a_reference(name: str):
    objective, logps = a_method(name), some_logps(reference=None, reference_head=None)
    assert loss_of(objective, logps) == loss_of(objective, some_logps())
    assert torch.equal(objective.rewards(logps), objective.rewards(some_logps()))


@pytest.mark.parametrize("name", MARGINS)
def test_every_loss_raises_the_chosen_and_lowers_the_rejected_answer(name: str):
    policy = torch.tensor(POLICY, dtype=torch.float64, requires_grad=True)
    head = torch.tensor(POLICY_HEAD, dtype=torch.float64, requires_grad=True)
    objective = a_method(name)
    logps = some_logps(policy=policy, policy_head=head)
    objective.loss(logps, KL if objective.needs_kl else None).sum().backward()
    assert policy.grad is not None
    # IPO's margins are far below its target of 5, so it pulls the same way.
    assert (policy.grad[:, 0] < 0).all()
    assert (policy.grad[:, 1] > 0).all()


# The first step.


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "dpo"}, math.log(2)),
        ({"name": "dpo", "beta": 0.7}, math.log(2)),
        ({"name": "dpo", "labelSmoothing": 0.2}, math.log(2)),
        ({"name": "dpo", "labelSmoothing": 0.2, "robust": True}, math.log(2)),
        ({"name": "ln-dpo"}, math.log(2)),
        ({"name": "ld-dpo"}, math.log(2)),
        ({"name": "ipo", "beta": 0.1}, 25.0),  # 1 / (4 β²)
        ({"name": "hinge"}, 1.0),
        ({"name": "kto"}, 2 * 0.5),  # an example has two answers here
        ({"name": "dpo", "weight": 2.0, "plus": [{"name": "hinge", "weight": 3.0}]}, 2 * math.log(2) + 3),
    ],
    ids=str,
)
def test_the_loss_of_a_policy_that_is_the_reference(settings: dict[str, Any], expected: float):
    objective = a_method(**settings)
    found = objective.first_loss(some_logps())
    assert found.tolist() == pytest.approx([expected, expected], rel=1e-12)
    # It is what the loss gives for a policy that really is the reference.
    reference = some_logps()
    same = some_logps(policy=reference.reference, policy_head=reference.reference_head)
    zero = torch.zeros((), dtype=torch.float64)
    assert torch.equal(objective.loss(same, zero if objective.needs_kl else None), found)


def test_the_first_loss_of_kto_is_one_half_per_answer():
    logps = some_logps(tokens=torch.tensor([[2, 0], [3, 1]]))
    objective = a_method("kto")
    assert objective.first_loss(logps).sum().item() / objective.units(logps.tokens) == pytest.approx(0.5)


def test_the_first_loss_has_the_references_likelihood():
    # ln 2 + 0.5 * 5/2, ln 2 + 0.5 * 6/3
    found = a_method("dpo", nllWeight=0.5).first_loss(some_logps())
    assert found.tolist() == pytest.approx([math.log(2) + 1.25, math.log(2) + 1.0])


@pytest.mark.parametrize("name", [name for name in MARGINS if name != "kto"])
def test_gaps_are_margins_for_each_token_without_beta(name: str):
    # Pairs of 6 and of 4 tokens; what is a mean already, and what belongs to whole answers, is not divided.
    tokens = [6, 4] if name in ("dpo", "hinge", "ld-dpo") else [1, 1]
    expected = [margin / count for margin, count in zip(MARGINS[name], tokens, strict=True)]
    assert a_method(name, **({} if name == "reward-model" else {"beta": 7.0})).gaps(
        some_logps()
    ).tolist() == pytest.approx(expected)


def test_gaps_of_sums_are_divided_for_ipo_too():
    assert a_method("ipo", reduction="sum").gaps(some_logps()).tolist() == pytest.approx([3 / 6, -3.5 / 4])
