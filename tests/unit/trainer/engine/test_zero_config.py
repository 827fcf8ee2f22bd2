"""DeepSpeed's configuration: what stays whole on each rank, and how large buckets are."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dpo_operator.api.types import DPOJob
from dpo_trainer.engine.zero_config import widths_of, zero_config

pytestmark = pytest.mark.unit

LLAMA_8B = SimpleNamespace(
    hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8, head_dim=128
)
LORA = {"type": "lora", "rank": 16, "alpha": 32, "targetModules": ["all-linear"]}


def stage3(device: str, *, world_size: int = 8, adapter: dict[str, Any] | None = None) -> dict[str, Any]:
    job = {
        "metadata": {"name": "x"},
        "spec": {
            "model": {"name": "x"},
            "data": {"train": {"source": "x"}},
            "gpusPerNode": 1,
            **({"adapter": adapter} if adapter else {}),
        },
    }
    spec = DPOJob.model_validate(job).spec
    made = zero_config(spec, widths_of(LLAMA_8B), torch.device(device), world_size=world_size)
    found: dict[str, Any] = made["zero_optimization"]
    return found


def test_a_bucket_on_gpus_holds_one_layer() -> None:
    # q and o, k and v, then gate, up and down.
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    gpu, cpu = stage3("cuda"), stage3("cpu")
    assert gpu["stage3_prefetch_bucket_size"] == gpu["reduce_bucket_size"] == layer
    assert cpu["reduce_bucket_size"] == 4096 * 4096


def test_adapter_matrices_stay_whole_and_weights_do_not() -> None:
    largest = 16 * 14336
    assert stage3("cuda", adapter=LORA)["stage3_param_persistence_threshold"] == largest
    assert stage3("cuda")["stage3_param_persistence_threshold"] == 40960
    assert stage3("cuda", world_size=1)["stage3_param_persistence_threshold"] > 10**15


def test_sizes_of_configurations_that_name_less() -> None:
    widths = widths_of(SimpleNamespace(hidden_size=64))
    assert (widths.hidden, widths.inner) == (64, 256)
    assert widths.layer == 4 * 64 * 64 + 3 * 64 * 256
