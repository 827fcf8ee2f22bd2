"""Every method on two ZeRO-3 ranks is the training of one process, and no choice of micro-batches changes a loss."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_operator.api.training import Budget
from dpo_trainer.batches.sampler import StepPlan
from tests.numerics.family import examples
from tests.numerics.jobs import a_job, make_model
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

# 15 examples in steps of 8, in micro-batches of at most 3: in an epoch's first step a rank of two has 3 and 1, in its second
# step one rank has 3 and 1, and the other 3 and none; one process has 3, 3 and 2, then 3, 3 and 1.
STEP_SIZE, MICRO_BATCH = 8, 3
# Four epochs; of KTO ten, because its reference point stays 0 at first.
STEPS, KTO_STEPS = 8, 20
DATA = {
    "pairs": examples("=" * 15),
    # Desirable and undesirable answers fall unequally on the ranks of most steps.
    "unpaired": examples("+-+++-++--+++-+"),
    "mixed": examples("=-=+==+--=+==-+"),
}
LORA = {"type": "lora", "rank": 4, "alpha": 16, "targetModules": ["q_proj", "v_proj", "down_proj"]}
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "dpo": ({"name": "dpo"}, "pairs"),
    "cdpo": ({"name": "dpo", "labelSmoothing": 0.2}, "pairs"),
    "robust": ({"name": "dpo", "labelSmoothing": 0.2, "robust": True}, "pairs"),
    "hinge": ({"name": "hinge"}, "pairs"),
    "ipo": ({"name": "ipo"}, "pairs"),
    "ipo sum": ({"name": "ipo", "reduction": "sum"}, "pairs"),
    "ln-dpo": ({"name": "ln-dpo"}, "pairs"),
    "ld-dpo": ({"name": "ld-dpo"}, "pairs"),
    "dpo + nll": ({"name": "dpo", "nllWeight": 0.5}, "pairs"),
    "dpo + simpo + ipo": (
        {"name": "dpo", "weight": 0.5, "plus": [{"name": "simpo", "weight": 0.3}, {"name": "ipo", "weight": 0.01}]},
        "pairs",
    ),
    "kto, pairs": ({"name": "kto"}, "pairs"),
    "kto, unpaired": ({"name": "kto", "desirableWeight": 1.0, "undesirableWeight": 2.2}, "unpaired"),
    "kto, mixed": ({"name": "kto"}, "mixed"),
    "orpo": ({"name": "orpo"}, "pairs"),
    "orpo over all": ({"name": "orpo", "nllOver": "all", "beta": 0.5}, "pairs"),
    "simpo": ({"name": "simpo"}, "pairs"),
}
# Methods that differ from another one in a figure alone need no second adapter.
FULL_ONLY = ("cdpo", "ipo sum", "dpo + simpo + ipo", "kto, mixed", "orpo over all")
CASES = {
    f"{name}, {how}": (method, data, adapter)
    for name, (method, data) in METHODS.items()
    for how, adapter in (("full", None), ("lora", LORA))
    if adapter is None or name not in FULL_ONLY
}
# What the ranks have to agree on is the same in methods that differ in the function of one log-ratio alone. CI runs one of
# those, all that sum, scale or compare something else, and of adapters one for each kind of data and of reference.
IN_CI = (
    "dpo, full", "ipo, full", "ln-dpo, full", "ld-dpo, full", "dpo + nll, full", "dpo + simpo + ipo, full",
    "kto, pairs, full", "kto, unpaired, full", "kto, mixed, full", "orpo, full", "simpo, full",
    "dpo, lora", "kto, unpaired, lora", "orpo, lora",
)  # fmt: skip
PLAN = StepPlan(15, STEP_SIZE, seed=7, shuffle=True)
# Of what is logged, these are samples of each micro-batch, or compare what rounding left before the first update.
NOT_COMPARED = ("entropy", "mean_token_accuracy", "margin_length_correlation", "rewards/accuracies")


def train_each(cases: dict[str, tuple[dict[str, Any], str, dict | None]], model: Path) -> dict[str, dict[str, Any]]:
    """The training of each case as one rank: metrics of its "steps", final "weights", and then "resized", the metrics of
    one step in micro-batches of other sizes, and "eval", those of an evaluation."""
    from dpo_trainer.distributed.world import join_world

    world = join_world("cpu")
    return {name: _train(*case, model, world) for name, case in cases.items()}


def _train(method: dict[str, Any], which: str, adapter: dict[str, Any] | None, model: Path, world: Any) -> Any:
    from deepspeed.utils import safe_get_full_fp32_param

    from dpo_operator.api.types import DPOJob
    from dpo_trainer.data.dataset import mismatched
    from dpo_trainer.engine.engine import Engine
    from dpo_trainer.losses.objective import Objective
    from dpo_trainer.runtime.stop import StopRequest
    from dpo_trainer.training.evaluate import evaluate
    from dpo_trainer.training.examples import Examples
    from dpo_trainer.training.passes import logps_table
    from dpo_trainer.training.step import forward_backward

    document = a_job(globalBatchSize=STEP_SIZE, microBatchSize=MICRO_BATCH)
    document["spec"] |= {"method": method, **({"adapter": adapter} if adapter else {})}
    spec, data = DPOJob.model_validate(document).spec, DATA[which]
    objective, engine = Objective(spec.method), Engine(spec, model, world)
    assert engine.module.pack("shared")
    split = Examples("training", data, mismatched(data) if objective.needs_kl else None)
    if objective.needs_reference:
        split.add_reference(lambda _, pairs: logps_table(engine, pairs, budget=Budget(10_000, MICRO_BATCH)))

    def step(pairs: np.ndarray, size: int, kl_size: int, first: bool) -> dict[str, float]:
        sums = forward_backward(
            engine,
            objective,
            split,
            pairs,
            StopRequest(),
            budget=Budget(10_000, size),
            kl_budget=Budget(10_000, kl_size),
            is_first=first,
        )
        return sums.metrics | ({} if sums.first_loss is None else {"first": sums.first_loss})

    steps = []
    for number in range(1, steps_of(method) + 1):
        steps.append(step(PLAN.step(number), MICRO_BATCH, 2, number == 1))
        engine.step(1e-2 if adapter else 2e-3)
    weights = {
        name: safe_get_full_fp32_param(p).numpy().copy()
        for name, p in engine.module.named_parameters()
        if p.requires_grad
    }
    resized = []
    for size, kl_size in ((1, 5), (2, 1), (8, 2)) if adapter is None else ():
        resized.append(step(PLAN.step(1), size, kl_size, False))
        engine.step(0.0)  # clears the gradient and changes nothing
    return {
        "steps": steps,
        "weights": weights,
        "resized": resized,
        "eval": evaluate(engine, split, objective, budget=Budget(10_000, 4)),
    }


def steps_of(method: dict[str, Any]) -> int:
    return KTO_STEPS if method["name"] == "kto" else STEPS


def _model(folder: Path) -> None:
    make_model(folder, layers=1)


def of(names: Iterable[str]) -> list[Any]:
    """Parameters of a test: names of cases."""
    return [name if name in IN_CI else pytest.param(name, marks=pytest.mark.exhaustive) for name in names]


@pytest.fixture(scope="module")
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Each case that a test was selected for, trained by one process, and by each of two ranks."""
    callspecs = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    names = {callspec.params["name"] for callspec in callspecs if callspec}
    cases = {name: case for name, case in CASES.items() if name in names}
    model = tmp_path_factory.mktemp("ranks") / "model"
    on_ranks(1, _model, model)
    [alone] = on_ranks(1, train_each, cases, model, timeout=600)
    return alone, on_ranks(2, train_each, cases, model, timeout=600)


def assert_same(found: dict[str, float], expected: dict[str, float], tolerance: float, where: object) -> None:
    assert found.keys() == expected.keys()
    for key in expected.keys() - set(NOT_COMPARED):
        assert found[key] == pytest.approx(expected[key], abs=tolerance, rel=1e-5, nan_ok=True), (where, key)


@pytest.mark.parametrize("name", of(CASES))
def test_two_ranks_train_as_one_process(name: str, trained: tuple[dict[str, Any], list[dict[str, Any]]]):
    alone, ranks = trained[0][name], [rank[name] for rank in trained[1]]
    assert len(alone["steps"]) == steps_of(CASES[name][0])
    for rank in ranks:
        for number, (two, one) in enumerate(zip(rank["steps"], alone["steps"], strict=True), start=1):
            assert_same(two, one, 1e-4, number)
        assert_same(rank["eval"], alone["eval"], 1e-4, "evaluation")
        assert rank["weights"].keys() == alone["weights"].keys()
        for parameter, value in alone["weights"].items():
            np.testing.assert_allclose(rank["weights"][parameter], value, atol=1e-4, err_msg=parameter)
    # Equality means something only where something was learnt.
    learnt = [abs(step["rewards/margins"] - alone["steps"][0]["rewards/margins"]) for step in alone["steps"]]
    assert max(learnt) > 0.02


@pytest.mark.parametrize("name", of(name for name in CASES if name.endswith(", full")))
def test_the_size_of_a_micro_batch_changes_no_loss(name: str, trained: tuple[dict[str, Any], list[dict[str, Any]]]):
    [expected, *others] = trained[0][name]["resized"]
    for world in trained[1]:
        others += world[name]["resized"]
    assert len(others) == 8
    for number, found in enumerate(others):
        # IPO of sums squares numbers near 1/(2 beta), where float32's rounding of log-probs counts for more.
        nats = 2e-5 if name.startswith("ipo sum") else 1e-6
        assert found["loss"] == pytest.approx(expected["loss"], abs=nats, rel=1e-6), number
        assert_same(found, expected, 1e-5, number)


@pytest.mark.parametrize("name", of(name for name in CASES if name.startswith("kto")))
def test_the_reference_point_of_kto_is_one_number_on_all_ranks(name: str, trained: Any):
    first, second = ([line["kl"] for line in rank[name]["steps"] + rank[name]["resized"]] for rank in trained[1])
    assert first == second
    assert max(first) > 0.01


def test_ranks_have_unequal_numbers_of_desirable_answers():
    """Of the unpaired data that the tests above train on."""
    desirable = DATA["unpaired"].lengths[:, 1] > 0
    shares = [[int(desirable[PLAN.step(step)[rank::2]].sum()) for rank in range(2)] for step in range(1, KTO_STEPS + 1)]
    assert sum(a != b for a, b in shares) > KTO_STEPS / 2
    assert any(abs(a - b) > 1 for a, b in shares)
