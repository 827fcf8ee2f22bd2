"""DeepSpeed's configuration for a job."""

import sys
from dataclasses import dataclass
from typing import Any

import torch

from dpo_operator.api.model import AdapterType
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.engine.loss_scale import LossScale

# Elements that the optimizer updates at a time. DeepSpeed first copies their gradients; its default is a billion.
_SUB_GROUP = 1 << 24


# Most elements of a bucket: layers with experts have billions.
_LARGEST_BUCKET = 250_000_000


@dataclass(frozen=True)
class Widths:
    """Sizes of a model that buckets follow: width, inner width of its MLP, and elements of one layer's matrices."""

    hidden: int
    inner: int
    layer: int


def widths_of(config: Any) -> Widths:
    """Sizes from a text model's configuration; a name that it lacks counts as its usual multiple of the width."""
    hidden: int = config.hidden_size
    inner = max(getattr(config, "intermediate_size", None) or 4 * hidden, hidden)
    heads = getattr(config, "num_attention_heads", None) or 1
    size = getattr(config, "head_dim", None) or hidden // heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    return Widths(hidden, inner, 2 * hidden * size * (heads + keys) + 3 * hidden * inner)


def zero_config(spec: DPOJobSpec, widths: Widths, device: torch.device, *, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration for ZeRO-3 (Rajbhandari et al. 2019, 1910.02054).

    On GPUs a bucket holds the matrices of a layer, so that a layer is fetched while the one before it computes; on CPUs, where nothing
    overlaps, one matrix of about hidden² elements.
    Parameters smaller than ten vectors (norms, biases) stay whole on every rank, and with adapters those that are no larger than the
    largest adapter matrix: to gather it for each use would take longer than to use it.
    Gradients are kept in fp32 whatever the precision of the model, and sent so unless the job says otherwise; master weights are fp32.
    """
    matrix = widths.hidden * widths.hidden
    on_gpu = device.type == "cuda"
    bucket = min(widths.layer, _LARGEST_BUCKET) if on_gpu else matrix
    adapters = spec.adapter.type is not AdapterType.NONE
    persistent = max(10 * widths.hidden, spec.adapter.rank * widths.inner if adapters else 0)
    offload = {"device": "cpu", "pin_memory": on_gpu} if spec.training.offload == "cpu" else None
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": spec.training.max_grad_norm,
        "bf16": {"enabled": spec.training.precision == "bf16"},
        # A fixed scale for DeepSpeed; loss_scale.py adjusts it.
        "fp16": {"enabled": spec.training.precision == "fp16", "loss_scale": LossScale().factor},
        "communication_data_type": spec.training.gradient_reduction,
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        # torch's own AdamW also supports offloaded state; DeepSpeed's would have to be compiled.
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": on_gpu,
            "contiguous_gradients": True,
            "reduce_bucket_size": max(bucket, 1_000_000),
            "sub_group_size": _SUB_GROUP,
            "stage3_prefetch_bucket_size": bucket if on_gpu else int(0.9 * matrix),
            "stage3_param_persistence_threshold": sys.maxsize if world_size == 1 else persistent,
            "stage3_gather_16bit_weights_on_model_save": False,
            **({"offload_optimizer": offload} if offload else {}),
            # hpZ of ZeRO++ (Wang et al. 2023, 2306.10209).
            **({"zero_hpz_partition_size": spec.gpus_per_node} if spec.training.hierarchical_partition else {}),
        },
        "steps_per_print": None,
    }
