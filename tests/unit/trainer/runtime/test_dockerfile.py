"""What the trainer's Dockerfile does with its arguments, as far as a shell alone shows it."""

import re
import subprocess
from pathlib import Path

import pytest

from dpo_trainer.runtime.devices import OLDEST_DRIVER, cuda_of_torch

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[4]
DOCKERFILE = (ROOT / "trainer_image" / "Dockerfile").read_text().replace("\\\n", " ")


def shell(command: str, text: str) -> str:
    return subprocess.run(["sh", "-ec", command], input=text, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", ["Dockerfile", "vllm.Dockerfile"])
def test_every_command_is_valid_for_a_shell(name: str):
    text = (ROOT / "trainer_image" / name).read_text().replace("\\\n", " ")
    commands = re.findall(r"^RUN (.+)$", text, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        subprocess.run(["sh", "-n"], input=command, text=True, check=True)


def test_another_index_gives_the_pinned_version_of_torch():
    requirements = ROOT / "requirements" / "trainer.txt"
    [pick] = re.findall(r"torch=\"\$\((sed .*?) /opt/requirements/trainer\.txt\)\"", DOCKERFILE)
    [pinned] = re.findall(r"^torch==\S+", requirements.read_text(), re.MULTILINE)
    assert shell(pick, requirements.read_text()) == pinned


def test_another_index_replaces_torch_and_the_libraries_of_its_cuda_alone():
    [pick] = re.findall(r"(sed -n '\S*nvidia\S*') >", DOCKERFILE)
    there = [
        "cuda-toolkit==13.2.2",
        "nvidia-nccl-cu13==2.30.7",
        "numpy==2.3",
        "torch==2.15.0",
        "torchmetrics==1.0",
        "triton==3.9",
    ]
    assert shell(pick, "\n".join(there)).split() == ["cuda-toolkit", "nvidia-nccl-cu13", "torch", "triton"]


def test_the_docs_name_the_driver_that_the_pinned_cuda_needs():
    cuda = cuda_of_torch()
    assert cuda is not None
    *first, last = OLDEST_DRIVER[int(cuda.partition(".")[0])]
    text = (ROOT / "docs" / "install.md").read_text()
    assert f"driver {'.'.join(map(str, first))}.{last:02} or newer" in text
    assert f"built for CUDA {cuda.partition('.')[0]}," in text
