"""Which containers have a GPU, whether or not torch can use it."""

from pathlib import Path

import pytest

from dpo_trainer.distributed import world
from dpo_trainer.runtime.devices import has_gpu
from dpo_trainer.runtime.errors import TrainerError

pytestmark = pytest.mark.unit


def test_gpus_of_other_makers_are_known_by_what_the_operator_says() -> None:
    assert has_gpu({"NVIDIA_VISIBLE_DEVICES": "void", "DPO_GPU_RESOURCE": "amd.com/gpu"})
    assert not has_gpu({"NVIDIA_VISIBLE_DEVICES": "void"})


def test_the_nodes_fourth_gpu_is_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    assert not has_gpu({}, tmp_path)
    (tmp_path / "nvidia3").touch()
    assert has_gpu({}, tmp_path)


def test_a_gpu_that_torch_can_not_use_is_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DPO_GPU_RESOURCE", "gpu.intel.com/xe")
    with pytest.raises(TrainerError, match="can't train"):
        world.choose_device("auto", local_rank=0)
