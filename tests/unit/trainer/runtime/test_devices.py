"""Which containers have a GPU, whether or not torch can use it."""

import json
from pathlib import Path

import pytest

from dpo_operator.api import names
from dpo_operator.api.exitcodes import ExitCode, info
from dpo_operator.api.reports import Termination
from dpo_trainer import phases
from dpo_trainer.distributed import world
from dpo_trainer.runtime.devices import cuda_of_torch, driver_problem, gpus_of_process, has_gpu
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


def test_processes_share_a_containers_gpus_without_overlap() -> None:
    assert [gpus_of_process({}, rank, 2) for rank in range(2)] == ["0,1", "2,3"]
    named = {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,6,7"}
    assert [gpus_of_process(named, rank, 2) for rank in range(2)] == ["GPU-a,GPU-b", "6,7"]


def test_a_gpu_that_torch_can_not_use_is_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DPO_GPU_RESOURCE", "gpu.intel.com/xe")
    with pytest.raises(TrainerError, match="can't train"):
        world.choose_device("auto", local_rank=0)


CLOSED = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.07  Sat Feb 17 22:55:48 UTC 2024
GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)
"""
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)\n"


def test_a_driver_that_is_too_old_is_named_beside_the_cuda(tmp_path: Path) -> None:
    driver, none = tmp_path / "version", tmp_path / "none"
    driver.write_text(CLOSED)
    said = driver_problem("13.2", driver, none)
    assert "from 580.65.06 on, which this image's torch for CUDA 13.2 needs, found 535.161.07" in said
    assert "torch for CUDA 12, which runs on 525.60.13" in said
    assert driver_problem("12.6", driver, none) == ""
    driver.write_text(OPEN)
    assert driver_problem("13.2", driver, none) == ""
    driver.write_text(OPEN.replace("580.65.06", "580.65.05"))
    assert driver_problem("13.2", driver, none)
    # With NVIDIA's libraries for that, newer programs run on older drivers.
    (tmp_path / "libcuda.so.1").touch()
    assert driver_problem("13.2", driver, tmp_path) == ""


@pytest.mark.parametrize("cuda", [None, "13.2", "99.0"])
def test_what_is_not_known_is_no_problem(cuda: str | None, tmp_path: Path) -> None:
    driver = tmp_path / "version"
    assert driver_problem(cuda, driver, tmp_path) == ""
    driver.write_text("NVRM version: something else\n" if cuda == "13.2" else CLOSED)
    assert driver_problem(cuda, driver, tmp_path) == ""


def test_the_cuda_of_torch_is_known_without_torch() -> None:
    assert cuda_of_torch() == world.torch.version.cuda


def test_the_train_phase_ends_before_it_waits_for_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "version"
    driver.write_text(CLOSED)
    monkeypatch.setattr(phases, "driver_problem", lambda cuda: driver_problem(cuda, driver, tmp_path))
    monkeypatch.setattr(phases, "cuda_of_torch", lambda: "13.2")
    monkeypatch.setenv(names.ENV_GPU_RESOURCE, "nvidia.com/gpu")
    # Nobody has this name: waiting for it would take ten minutes.
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "nobody.invalid")
    monkeypatch.setenv(names.ENV_TERMINATION_LOG, str(tmp_path / "words.json"))
    (tmp_path / "job.json").write_text(
        json.dumps(
            {
                "metadata": {"name": "a"},
                "spec": {"model": {"name": "m"}, "data": {"train": {"source": "d"}}, "gpusPerNode": 1},
            }
        )
    )

    code = phases.run("train", tmp_path / "job.json", tmp_path / "work")

    words = Termination.from_text((tmp_path / "words.json").read_text())
    assert words is not None
    assert (code, words.reason) == (ExitCode.DRIVER_TOO_OLD, "DriverTooOld")
    assert "found 535.161.07" in words.message
    assert info(code).failure_class == "configuration"
