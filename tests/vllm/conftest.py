"""vLLM's Python, and a small model that its attention on CPUs can compute: heads of 32, where stories260K has heads of 8."""

import os
import shutil
from pathlib import Path

import pytest

# Ids of the tokenizer of stories260K.
BOS, EOS = 1, 2


@pytest.fixture(scope="session")
def python() -> str:
    """Python of an environment with vLLM; `make test-vllm` makes it and names it."""
    found = os.environ.get("DPO_TEST_VLLM_PYTHON")
    if not found:
        pytest.skip("DPO_TEST_VLLM_PYTHON is not set; run make test-vllm")
    return found


@pytest.fixture(scope="session")
def model(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama whose distributions are sharp enough that a wrong one would be seen."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    for path in (shared / "models" / "stories260K").glob("*token*"):
        shutil.copy(path, folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, initializer_range=0.12, bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
