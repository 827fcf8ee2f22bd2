"""A DeepSpeed ZeRO-3 engine around the policy: the same code on GPUs over NCCL and on CPUs over gloo.

Everything that DeepSpeed would compile at start-up is left out, so that a pod needs no compiler and starts fast.
"""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.batches.batch import MicroBatch
from dpo_trainer.engine.loss_scale import LossScale
from dpo_trainer.engine.memory import release_free
from dpo_trainer.engine.optimizer import make_optimizer
from dpo_trainer.model.policy import Policy, load_model
from dpo_trainer.runtime.devices import has_gpu
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration
from dpo_trainer.runtime.quiet import quiet_libraries

log = logging.getLogger(__name__)

# Elements that the optimizer updates at a time. DeepSpeed copies their gradients first, by default those of a billion.
_SUB_GROUP = 1 << 24

_MUON = "deepspeed.runtime.zero.muon.muon_optimizer"


@dataclass(frozen=True)
class World:
    """This process among the ranks."""

    rank: int
    world_size: int
    device: torch.device


@dataclass(frozen=True)
class Scored:
    """What the policy says of a batch, float64, nats.

    answers: [pairs, 2, 2]: of the chosen and the rejected answer, the log-prob of all tokens and of the head; 0 where an
        unpaired example has no such answer.
    prompts: [pairs], or None when the batch does not score prompts.
    distribution: [3], see Policy.forward.
    """

    answers: Tensor
    prompts: Tensor | None
    distribution: Tensor


def choose_device(wanted: str, *, local_rank: int) -> torch.device:
    """Device for `training.device`.

    auto never falls back in silence: a container that was given GPUs which CUDA can't use is an error.
    Raises TrainerError NO_ACCELERATOR.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise TrainerError(
                ExitCode.NO_ACCELERATOR,
                f"expected a GPU for local rank {local_rank}, found {torch.cuda.device_count()}; check gpusPerNode",
            )
        return torch.device("cuda", local_rank)
    if wanted == "cuda" or has_gpu(os.environ):
        raise TrainerError(
            ExitCode.NO_ACCELERATOR,
            "expected a GPU, found none that CUDA can use; check the node's driver and the image's CUDA version",
        )
    log.warning("NO GPU in this container: training on the CPU, which only suits very small models")
    return torch.device("cpu")


def join_world(wanted_device: str, *, timeout_seconds: float = 1800) -> World:
    """Connect this process to the other ranks by torchrun's environment variables; alone without them."""
    for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, alone)  # DeepSpeed reads them, too
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = choose_device(wanted_device, local_rank=int(os.environ["LOCAL_RANK"]))
    # DeepSpeed would try every vendor's module to find this out.
    os.environ["DS_ACCELERATOR"] = device.type
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        # DeepSpeed would run numactl to count this machine's devices, in every backward pass.
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
        # By default MKL multiplies narrow matrices in an order that depends on where they lie in memory (docs/checkpoints.md).
        os.environ.setdefault("MKL_CBWR", "AUTO")
    timeout = timedelta(seconds=timeout_seconds)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if world_size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout)
    return World(rank, world_size, device)


def zero_config(spec: DPOJobSpec, hidden_size: int, device: torch.device, *, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration for ZeRO-3 (Rajbhandari et al. 2019, 1910.02054).

    hidden_size: width of the model. A weight matrix has about its square of elements, so buckets hold one of them and
    what is smaller than ten vectors (norms, biases) is not partitioned while it is used.
    Gradients are summed and kept in fp32, master weights too, whatever the precision of the model.
    """
    matrix = hidden_size * hidden_size
    offload = {"device": "cpu", "pin_memory": device.type == "cuda"} if spec.training.offload == "cpu" else None
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": spec.training.max_grad_norm,
        "bf16": {"enabled": spec.training.precision == "bf16"},
        # A fixed scale for DeepSpeed; lossscale.py changes it.
        "fp16": {"enabled": spec.training.precision == "fp16", "loss_scale": LossScale().factor},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        # torch's own AdamW takes offloaded state, too; DeepSpeed's would have to be compiled.
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": device.type == "cuda",
            "contiguous_gradients": True,
            "reduce_bucket_size": max(matrix, 1_000_000),
            "sub_group_size": _SUB_GROUP,
            "stage3_prefetch_bucket_size": int(0.9 * matrix),
            "stage3_param_persistence_threshold": sys.maxsize if world_size == 1 else 10 * hidden_size,
            "stage3_gather_16bit_weights_on_model_save": False,
            **({"offload_optimizer": offload} if offload else {}),
        },
        "steps_per_print": None,
    }


class Engine:
    """The policy, its optimizer and the collective operations around them.

    Every method with "collective" in its description must be called by all ranks in the same order.
    """

    def __init__(self, spec: DPOJobSpec, model_folder: Path, world: World) -> None:
        """Load the model partitioned and make the optimizer. Collective."""
        deepspeed = _import_deepspeed()
        self.world = world
        self._loss_scale: LossScale | None = None
        if spec.training.precision == "fp16":
            if not deepspeed.get_accelerator().is_fp16_supported():
                raise invalid_configuration(
                    f"spec.training.precision: fp16 needs a GPU, or a CPU with float16 arithmetic; found {world.device.type} without it. "
                    "Use bf16 or fp32"
                )
            self._loss_scale = LossScale()
        self.config: dict[str, Any] = {}

        def partitioned_loading(hidden_size: int) -> Any:
            from transformers.integrations.deepspeed import HfDeepSpeedConfig

            self.config = zero_config(spec, hidden_size, world.device, world_size=world.world_size)
            return HfDeepSpeedConfig(self.config)

        torch.manual_seed(spec.training.seed)
        model = load_model(spec, model_folder, seed=spec.training.seed, zero3=partitioned_loading)
        policy = Policy(model)
        policy.head.chunk_bytes = (spec.training.logits_chunk_mi_b << 20) or None
        optimizer = make_optimizer(policy, spec)
        self.deepspeed, *_ = deepspeed.initialize(
            model=policy, optimizer=optimizer, config=self.config, dist_init_required=False
        )
        self._share_memory()
        self._claim_memory()
        if world.device.type == "cpu":
            release_free()

    def _share_memory(self) -> None:
        """Let tensors that are always equal be one: DeepSpeed keeps copies of them.

        In float32 the master weights are the weights. With one rank its partition is the whole parameter; a step takes the
        views away.
        """
        optimizer = self.deepspeed.optimizer
        for master, weights in zip(
            optimizer.fp32_partitioned_groups_flat, optimizer.fp16_partitioned_groups_flat, strict=True
        ):
            if weights is not None and (master.dtype, master.device) == (weights.dtype, weights.device):
                master.data = weights.data
        if self.world.world_size == 1:
            # Otherwise they would be gathered, that is copied, after each step.
            optimizer.persistent_parameters.clear()
            for p in self.module.parameters():
                p.data = p.ds_tensor.data[: p.ds_numel].view(p.ds_shape)
                p.ds_status = type(p.ds_status).AVAILABLE

    def _claim_memory(self) -> None:
        """Make Adam's state now and not in its first step, so that a job that does not fit fails before anything is computed."""
        adam = self.deepspeed.optimizer.optimizer
        if not isinstance(adam, torch.optim.AdamW):
            return
        for flat in self.deepspeed.optimizer.fp32_partitioned_groups_flat:
            moments = {name: torch.zeros_like(flat.data) for name in ("exp_avg", "exp_avg_sq")}
            adam.state[flat] = {"step": torch.zeros((), device=flat.device), **moments}

    @property
    def module(self) -> Policy:
        """The policy; its parameters are partitioned."""
        return self.deepspeed.module

    def train(self, mode: bool) -> None:
        """Switch adapter dropout and activation checkpointing on or off."""
        self.deepspeed.train(mode)

    def score(self, batch: MicroBatch, *, whole_logits: bool = False) -> Scored:
        """Log-probs of a batch under the current weights. Collective; with gradients unless under torch.no_grad()."""
        sums, distribution = self.deepspeed(batch.to(self.world.device), whole_logits=whole_logits)
        pairs = len(batch.pairs)
        answers = sums[: 2 * pairs].view(pairs, 2, 2)
        return Scored(
            answers=answers,
            prompts=sums[2 * pairs :, 0] if batch.segments > 2 * pairs else None,
            distribution=distribution,
        )

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of this rank's part of a step's loss. Collective.

        loss: scalar, the sum of this rank's pair losses divided by the pairs of the whole step. Summed over ranks and
            micro-batches that is the step's mean loss, for any split.
        last: true for the step's last micro-batch.
        """
        # DeepSpeed averages over ranks; the loss is a share of a sum, so undo that.
        self.deepspeed.set_gradient_accumulation_boundary(last)
        self.deepspeed.backward(loss * self.world.world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float | None:
        """Clip, update and clear the gradient. Collective.

        Returns the gradient's norm before clipping, or None when it is not finite; then no weight has changed, and in
        float16 the loss scale is halved.
        """
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        self.deepspeed.step()
        self._share_memory()
        applied = self.deepspeed.was_step_applied()
        if self._loss_scale is not None:
            self.loss_scale = self._loss_scale.after(applied=applied)
        return float(self.deepspeed.get_global_grad_norm()) if applied else None

    def abandon(self) -> None:
        """Forget the gradient of the step; no weight is changed."""
        self.deepspeed.optimizer._overflow_clean_up(None)

    @property
    def loss_scale(self) -> LossScale | None:
        """The factor of losses in float16; None in other precisions."""
        return self._loss_scale

    @loss_scale.setter
    def loss_scale(self, scale: LossScale) -> None:
        self._loss_scale = scale
        self.deepspeed.optimizer.loss_scale = scale.factor

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, on every rank's device. Collective. values: any shape; a copy is summed."""
        total = values.to(self.world.device, copy=True)
        dist.all_reduce(total)
        return total

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Collective."""
        return bool(self.sum(torch.tensor([float(flag)], dtype=torch.float64)).item())

    def partition_report(self) -> dict[str, int]:
        """How many parameters this rank holds, of how many.

        held: elements of this rank's partitions, with their padding. trainable: the part of `held` that is trained.
        total: elements of the model. persistent: elements that are, besides, kept whole on every rank (norms).
        """
        parameters = list(self.module.parameters())
        return {
            "held": sum(p.ds_tensor.numel() for p in parameters),
            "trainable": sum(p.ds_tensor.numel() for p in parameters if p.requires_grad),
            "total": sum(p.ds_numel for p in parameters),
            "persistent": sum(p.ds_numel for p in parameters if p.ds_persist),
        }


def _import_deepspeed() -> Any:
    """DeepSpeed without its compilers, quiet."""
    import deepspeed
    from deepspeed.utils import logger as deepspeed_logger

    # An empty table says that no operator of DeepSpeed's own can be built here. Otherwise the table is made by running
    # a compiler on probes, and on CPUs a shared-memory collective is compiled when the process group is first used.
    vars(deepspeed.ops)["__compatible_ops__"] = {}
    # DeepSpeed asks of every optimizer whether it is Muon. Importing that one loads all of torch's compiler, seconds of
    # CPU time on each start, so the answer comes from a class that no optimizer has.
    if _MUON not in sys.modules:
        muon = ModuleType(_MUON)
        vars(muon)["MuonWithAuxAdam"] = type("MuonWithAuxAdam", (torch.optim.Optimizer,), {})
        sys.modules[_MUON] = muon
    collectives = vars(deepspeed.runtime.comm.coalesced_collectives)
    scatter = collectives["_torch_reduce_scatter_fn"]
    if not isinstance(scatter, partial):  # by an earlier engine of this process
        collectives["_torch_reduce_scatter_fn"] = partial(_reduce_scatter, scatter)
    deepspeed_logger.setLevel(logging.ERROR)
    quiet_libraries()
    return deepspeed


def _reduce_scatter(scatter: Callable[..., None], whole: Tensor, part: Tensor, **options: Any) -> None:
    """DeepSpeed's, but that of one rank gives what it got, in the same memory; gloo would copy every gradient for that."""
    if dist.get_world_size(options.get("group")) > 1:
        scatter(whole, part, **options)
