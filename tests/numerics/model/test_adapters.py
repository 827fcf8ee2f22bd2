"""DoRA and rsLoRA under ZeRO-3: PEFT's own adapters on partitioned weights train as PEFT alone does."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import a_job, make_model, plain_training, some_pairs, train_on_rank
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

# 13 pairs in steps of 4: the last step of each epoch has 1, so that one of two ranks runs a pair that does not count.
PAIRS, STEPS = 13, 20
KINDS: dict[str, dict[str, Any]] = {"dora": {"dora": True}, "rslora": {"rslora": True}}


def job(kind: str, **training: Any) -> dict[str, Any]:
    document = a_job(maxSteps=STEPS, globalBatchSize=4, learningRate=2e-2, **training)
    document["spec"]["adapter"] = {
        "type": "lora", "rank": 4, "alpha": 16, "targetModules": ["q_proj", "v_proj", "down_proj"], **KINDS.get(kind, {}),
    }  # fmt: skip
    return document


def make_biased_model(folder: Path) -> None:
    """DoRA treats a bias apart, so attention has some that are not zero."""
    import torch
    from transformers import AutoModelForCausalLM

    make_model(folder, attention_bias=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    work = WorkDir(tmp_path_factory.mktemp("adapters"))
    some_pairs(PAIRS).save(work.train_data)
    on_ranks(1, make_biased_model, work.model)
    return work


@pytest.fixture(scope="module")
def plain(request: pytest.FixtureRequest, prepared: WorkDir) -> tuple[str, dict[str, Any]]:
    """A kind of adapter, and 20 steps with it in one process without DeepSpeed."""
    [run] = on_ranks(1, plain_training, copy.deepcopy(job(request.param)), prepared.model, some_pairs(PAIRS), STEPS)
    return request.param, run


def final_weights(root: Path) -> dict[str, np.ndarray]:
    from dpo_trainer.checkpoint.full import open_newest

    found, _ = open_newest(WorkDir(root).checkpoints)
    return {name: found.tensor(name).numpy() for name in found.manifest.parameters}


# CI runs each kind and each way to keep activations once.
@pytest.mark.parametrize(
    ("plain", "recompute"),
    [
        pytest.param("dora", False, id="dora-plain", marks=pytest.mark.exhaustive),
        pytest.param("dora", True, id="dora-checkpointing"),
        pytest.param("rslora", False, id="rslora-plain", marks=pytest.mark.exhaustive),
        pytest.param("rslora", True, id="rslora-checkpointing", marks=pytest.mark.exhaustive),
    ],
    indirect=["plain"],
)
def test_training_equals_peft_without_deepspeed(
    tmp_path: Path, prepared: WorkDir, plain: tuple[str, dict[str, Any]], recompute: bool
):
    kind, expected = plain
    work = WorkDir(tmp_path)
    some_pairs(PAIRS).save(work.train_data)
    work.model.symlink_to(prepared.model)
    got = on_ranks(2, train_on_rank, job(kind, gradientCheckpointing=recompute), tmp_path)[0]

    assert got["warnings"] == []
    assert len(got["steps"]) == STEPS
    for line, step in zip(got["steps"], expected["steps"], strict=True):
        for key in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "grad_norm"):
            assert line[key] == pytest.approx(step[key], abs=1e-5, rel=1e-5), (line["step"], key)
    # The comparison means something only if the loss moved.
    assert got["steps"][-1]["loss"] < got["steps"][0]["loss"] - 0.05
    [weights] = on_ranks(1, final_weights, tmp_path)
    assert weights.keys() == expected["weights"].keys()
    assert any("lora_magnitude_vector" in name for name in weights) == (kind == "dora")
    for name, value in expected["weights"].items():
        np.testing.assert_allclose(weights[name], value, atol=1e-4, err_msg=name)


def other_seed(model: Path) -> tuple[list[bool], dict[str, Any]]:
    """Whether seeds 7 and 7, and seeds 7 and 8, give the same adapters; and the scale of plain and of rsLoRA's update."""
    import torch
    from transformers import AutoModelForCausalLM

    from dpo_operator.api.types import DPOJob
    from dpo_trainer.model.adapters import add_lora

    def made(kind: str, seed: int) -> Any:
        adapter = DPOJob.model_validate(job(kind)).spec.adapter
        return add_lora(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapter, seed=seed)

    def start(model: Any) -> torch.Tensor:
        return torch.cat([p.flatten() for name, p in model.named_parameters() if "lora_A" in name])

    first, same, other = (start(made("dora", seed)) for seed in (7, 7, 8))
    scales = {
        kind: made(kind, 7).base_model.model.model.layers[0].self_attn.q_proj.scaling["default"]
        for kind in ("lora", "rslora")
    }
    return [torch.equal(first, same), torch.equal(first, other)], scales


def test_the_seed_sets_the_adapters_start_and_rslora_their_scale(prepared: WorkDir):
    [(equal, scales)] = on_ranks(1, other_seed, prepared.model)
    assert equal == [True, False]
    assert scales == {"lora": 16 / 4, "rslora": 16 / 4**0.5}


def start(document: dict[str, Any], model: Path) -> dict[str, Any]:
    """Largest difference between the log-probs of a new policy and of the model without adapters, by precision; and of
    DoRA's gradients under dropout from those of PEFT alone, relative."""
    import torch
    from deepspeed.utils import safe_get_full_grad, safe_set_local_fp32_param
    from transformers import AutoModelForCausalLM

    from dpo_operator.api.types import DPOJob
    from dpo_trainer.batches.batch import collate
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.engine.engine import Engine
    from dpo_trainer.model.adapters import add_lora
    from dpo_trainer.model.load import DTYPES
    from dpo_trainer.model.policy import Policy

    world, batch, found = join_world("cpu"), collate(some_pairs(PAIRS), range(4)), {}
    for precision in ("fp32", "bf16"):
        document["spec"]["training"]["precision"] = precision
        engine = Engine(DPOJob.model_validate(document).spec, model, world)
        base = Policy(AutoModelForCausalLM.from_pretrained(model, dtype=DTYPES[precision]))
        with torch.no_grad():
            ours, theirs = engine.score(batch).answers.flatten(0, 1), base(batch)[0]
        found[precision] = (ours - theirs).abs().max().item()

    document["spec"]["training"]["precision"] = "fp32"
    document["spec"]["adapter"]["dropout"] = 0.4
    spec = DPOJob.model_validate(document).spec
    engine = Engine(spec, model, world)
    plain = add_lora(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), spec.adapter, seed=7).train()
    # With the second matrices at zero the first would have no gradient.
    torch.manual_seed(0)
    moved = {name: torch.randn_like(p) * 0.1 for name, p in plain.named_parameters() if "lora_B" in name}
    for name, parameter in engine.module.model.named_parameters():
        if name in moved:
            part = moved[name].flatten().chunk(world.world_size)[world.rank]
            safe_set_local_fp32_param(parameter, part.clone())
    engine.zero.copy_master_weights_to_model()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if name in moved:
                parameter.copy_(moved[name])
    # Every rank draws the same dropout for the same pairs, so their mean is what one process has.
    torch.manual_seed(5)
    engine.backward(engine.score(batch).answers[..., 0].sum() / world.world_size, last=True)
    torch.manual_seed(5)
    Policy(plain)(batch)[0][:, 0].sum().backward()
    ours = {name: safe_get_full_grad(p) for name, p in engine.module.model.named_parameters() if p.requires_grad}
    found["gradients"] = {
        name: ((ours[name] - p.grad).abs().max() / p.grad.abs().max()).item()
        for name, p in plain.named_parameters()
        if p.requires_grad
    }
    return found


def test_dora_starts_as_the_base_model_and_its_dropout_has_pefts_gradients(prepared: WorkDir):
    for found in on_ranks(2, start, job("dora"), prepared.model):
        # Not only close: DoRA divides a norm by the same norm.
        assert found["fp32"] == 0
        assert found["bf16"] == 0
        # A, B and the magnitude, of three projections in two layers.
        assert len(found["gradients"]) == 3 * 3 * 2
        assert max(found["gradients"].values()) < 1e-4, found["gradients"]
