"""DeepSpeed's configuration for a job."""

import sys
from typing import Any

import torch

from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.engine.loss_scale import LossScale

# Elements that the optimizer updates at a time. DeepSpeed first copies their gradients; its default is a billion.
_SUB_GROUP = 1 << 24


def zero_config(spec: DPOJobSpec, hidden_size: int, device: torch.device, *, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration for ZeRO-3 (Rajbhandari et al. 2019, 1910.02054).

    hidden_size: width of the model. A weight matrix has about hidden_size² elements, so a bucket holds one matrix.
        Parameters smaller than ten vectors (norms, biases) stay whole on every rank.
    Gradients are summed and kept in fp32, master weights too, whatever the precision of the model.
    """
    matrix = hidden_size * hidden_size
    offload = {"device": "cpu", "pin_memory": device.type == "cuda"} if spec.training.offload == "cpu" else None
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": spec.training.max_grad_norm,
        "bf16": {"enabled": spec.training.precision == "bf16"},
        # A fixed scale for DeepSpeed; loss_scale.py adjusts it.
        "fp16": {"enabled": spec.training.precision == "fp16", "loss_scale": LossScale().factor},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        # torch's own AdamW also supports offloaded state; DeepSpeed's would have to be compiled.
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
