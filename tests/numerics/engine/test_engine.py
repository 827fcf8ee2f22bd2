"""The engine: partitions, no compiler, no update with non-finite numbers, the right device."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.training import Budget
from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import a_job, make_model, some_pairs, train_on_rank
from tests.numerics.ranks import RankFailed, on_ranks

pytestmark = pytest.mark.numerics


@pytest.fixture
def work(tmp_path: Path) -> WorkDir:
    work = WorkDir(tmp_path)
    some_pairs(9).save(work.train_data)
    on_ranks(1, make_model, work.model)
    return work


def partitions(document: dict[str, Any], model: Path, extensions: Path) -> dict[str, Any]:
    os.environ["TORCH_EXTENSIONS_DIR"] = str(extensions)

    from dpo_operator.api.types import DPOJob
    from dpo_trainer.batches.batch import collate
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.distributed.zero3_internals import local_partition, whole_numel
    from dpo_trainer.engine.engine import Engine

    read: list[int] = []
    engine = Engine(DPOJob.model_validate(document).spec, model, join_world("cpu"), alive=read.append)
    engine.backward(-engine.score(collate(some_pairs(3), [0])).answers[..., 0].sum(), last=True)
    engine.step(1e-3)
    whole = [name for name, p in engine.module.named_parameters() if local_partition(p).numel() >= whole_numel(p)]
    return {
        **engine.partition_report(),
        "whole": whole,
        "read": read,
        "inductor": "torch._inductor.compile_fx" in sys.modules,
    }


_ALONE = """
import json, sys
from pathlib import Path
from tests.numerics.engine.test_engine import partitions
print(json.dumps(partitions(json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))))
"""


def test_each_rank_holds_its_part_and_no_extension_is_compiled(work: WorkDir, tmp_path: Path):
    # Embedding and head, and in each of two layers q, k, v, o, gate, up, down and two norms; then the last norm.
    total = 2 * 96 * 32 + 2 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 48 + 2 * 32) + 32
    ranks = on_ranks(2, partitions, a_job(), work.model, tmp_path / "extensions")
    for report in ranks:
        assert report["total"] == total
        # Half of each parameter; all of these have an even number of elements.
        assert report["held"] == total // 2
        assert report["whole"] == []
        # A sign of life for each module whose weights were read: 7 matrices and 2 norms of two layers, embedding, last norm, head.
        assert report["read"] == list(range(1, len(report["read"]) + 1))
        assert len(report["read"]) >= 21
    assert not (tmp_path / "extensions").exists()


def test_a_step_loads_no_compiler(work: WorkDir, tmp_path: Path):
    """In a process of its own: ranks of `on_ranks` are forks of a server that has loaded the compiler already."""
    command = [sys.executable, "-c", _ALONE, json.dumps(a_job()), str(work.model), str(tmp_path / "extensions")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    report = json.loads(done.stdout.splitlines()[-1])
    assert not report["inductor"]
    assert not (tmp_path / "extensions").exists()


def gradients(document: dict[str, Any], model: Path) -> dict[str, Any]:
    """ZeRO-3's gradients of a step in three micro-batches, the last a dummy on rank 1; largest error by parameter."""
    import numpy as np
    import torch
    from deepspeed.utils import safe_get_full_grad
    from transformers import AutoModelForCausalLM

    from dpo_operator.api.types import DPOJob
    from dpo_trainer.batches.batch import collate
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.engine.engine import Engine
    from dpo_trainer.model.policy import Policy
    from dpo_trainer.training.passes import micro_batches_of, plan_rounds

    world, data = join_world("cpu"), some_pairs(9)
    engine = Engine(DPOJob.model_validate(document).spec, model, world)
    indices = np.arange(5)
    planned = plan_rounds(engine, data, indices, Budget(1))
    for number, batch in enumerate(micro_batches_of(engine, data, planned), start=1):
        loss = (engine.score(batch).answers[:, 0, 0].square() * batch.weight).sum() / len(indices)
        engine.backward(loss, last=number == len(planned))
    found = {name: safe_get_full_grad(p).clone() for name, p in engine.module.named_parameters()}
    plain = Policy(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))
    plain(collate(data, indices.tolist()))[0][::2, 0].square().mean().backward()
    return {
        name: ((found[name] - p.grad).abs().max() / p.grad.abs().max()).item() for name, p in plain.named_parameters()
    }


@pytest.mark.parametrize("world_size", [1, 2])
def test_gradients_equal_those_of_one_process(work: WorkDir, world_size: int):
    for errors in on_ranks(world_size, gradients, a_job(), work.model):
        assert len(errors) > 15
        assert max(errors.values()) < 1e-4, errors


def overflowing_update(document: dict[str, Any], model: Path) -> tuple[float | None, float | None, bool]:
    """Norms of an overflowing and of a finite gradient, and whether the overflow left the weights unchanged."""
    import torch
    from deepspeed.utils import safe_get_local_fp32_param

    from dpo_operator.api.types import DPOJob
    from dpo_trainer.batches.batch import collate
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.engine.engine import Engine

    world = join_world("cpu")
    engine, batch = Engine(DPOJob.model_validate(document).spec, model, world), collate(some_pairs(3), [0])
    before = [safe_get_local_fp32_param(p).clone() for p in engine.module.parameters()]
    # Only rank 1's part is infinite, and both ranks have to skip the step.
    engine.backward(engine.score(batch).answers[..., 0].sum() * (1e38 if world.rank else 1.0) * 1e3, last=True)
    first = engine.step(1e-3)
    same = all(
        torch.equal(a, safe_get_local_fp32_param(p)) for a, p in zip(before, engine.module.parameters(), strict=True)
    )
    engine.backward(engine.score(batch).answers[..., 0].sum(), last=True)
    return first, engine.step(1e-3), same


def test_an_overflowing_gradient_changes_no_weight(work: WorkDir):
    for first, second, same in on_ranks(2, overflowing_update, a_job(), work.model):
        assert first is None
        assert second is not None
        assert 0 < second < 1e6
        assert same


def infinite_reference(folder: Path) -> None:
    from safetensors.torch import load_file

    from dpo_trainer.training.reference import save_table

    [path] = folder.glob("*.safetensors")
    table = load_file(path)["logps"]
    table[4, 0] = float("inf")
    save_table(path, table, key=path.stem)


def test_a_non_finite_loss_ends_the_run_without_a_checkpoint(work: WorkDir):
    document = a_job(maxSteps=1, globalBatchSize=3, shuffle=False, nonFinite={"action": "fail"})
    on_ranks(1, train_on_rank, document, work.root)
    on_ranks(1, infinite_reference, work.reference)
    document["spec"]["training"]["maxSteps"] = 3
    shutil.rmtree(work.checkpoints)
    with pytest.raises(RankFailed, match=r"TrainerError: Step 2: expected finite numbers.* 1 of 3 pairs"):
        on_ranks(2, train_on_rank, document, work.root)
    assert not [folder for folder in work.checkpoints.iterdir() if folder.is_dir()]


def poisoned(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_model_with_nan_weights_is_refused(work: WorkDir):
    on_ranks(1, poisoned, work.model)
    with pytest.raises(RankFailed, match=r"TrainerError: spec.model: expected finite log-probs from the reference"):
        on_ranks(2, train_on_rank, a_job(maxSteps=1), work.root)
    assert not list(work.reference.glob("*"))


def bf16(document: dict[str, Any], root: Path) -> tuple[dict[str, Any], bool]:
    """A bf16 run, and whether its checkpoint holds weights that bf16 can't represent: the fp32 masters."""
    import torch

    run = train_on_rank(document, root)
    from dpo_trainer.checkpoint.full import open_newest

    found, _ = open_newest(WorkDir(root).checkpoints)
    weight = found.tensor("model.layers.0.self_attn.q_proj.weight")
    return run, not torch.equal(weight, weight.to(torch.bfloat16).float())


def test_bf16_learns_and_keeps_fp32_masters(work: WorkDir):
    document = a_job(maxSteps=12, precision="bf16", gradientCheckpointing=True)
    (run, masters), _ = on_ranks(2, bf16, document, work.root)
    assert run["warnings"] == []
    assert run["steps"][-1]["loss"] < 0.5
    assert masters


def test_evaluation_weighs_every_pair_once(work: WorkDir):
    # Five pairs on two ranks in passes of two: the last pass of rank 1 is a dummy. Evaluated on the training pairs, the
    # metrics are those of a step that has them all as its batch.
    some_pairs(5).save(work.train_data)
    some_pairs(5).save(work.eval_data)
    document = a_job(maxSteps=4, globalBatchSize=5, scheduler="constant")
    document["spec"]["evaluation"] = {"everySteps": 1, "microBatchSize": 2}
    run = on_ranks(2, train_on_rank, document, work.root)[0]
    assert len(run["evals"]) == 4
    for evaluated, trained in zip(run["evals"][:-1], run["steps"][1:], strict=True):
        for key in ("loss", "rewards/chosen", "rewards/margins", "logps/rejected"):
            assert evaluated[f"eval_{key}"] == pytest.approx(trained[key], abs=1e-4), key


def chosen_device(wanted: str, visible: str) -> str:
    os.environ["NVIDIA_VISIBLE_DEVICES"] = visible
    from dpo_trainer.distributed.world import choose_device

    return str(choose_device(wanted, local_rank=0))


@pytest.mark.parametrize(("wanted", "visible"), [("cpu", "all"), ("auto", ""), ("auto", "void"), ("auto", "none")])
def test_the_cpu_is_used_where_no_gpu_was_given(wanted: str, visible: str):
    import torch

    if not torch.cuda.is_available():
        assert on_ranks(1, chosen_device, wanted, visible) == ["cpu"]


@pytest.mark.parametrize(("wanted", "visible"), [("auto", "all"), ("auto", "GPU-1"), ("cuda", "")])
def test_a_gpu_that_cannot_be_used_is_an_error(wanted: str, visible: str):
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(RankFailed, match="expected a GPU, found none that CUDA can use"):
            on_ranks(1, chosen_device, wanted, visible)
