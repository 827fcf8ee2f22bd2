"""Small jobs for the check, through the trainer's own loop. torch is imported where it is needed."""

from pathlib import Path
from typing import Any

from benchmarks.gpu.checks import LENGTHS, apart
from dpo_trainer.runtime.workdir import WorkDir

VOCABULARY = 512


def prepare(work: WorkDir) -> None:
    """Put a model of four layers and pairs of real lengths into a work folder, unless they are there."""
    if not work.model.exists():
        pairs(VOCABULARY, scale=8).save(work.train_data)
        make_model(work.model, hidden=64, layers=4, heads=4, inner=128, vocabulary=VOCABULARY)


def pairs(vocabulary: int, *, scale: int = 1, count: int = len(LENGTHS)) -> Any:
    """Random tokens in pairs of real lengths, divided by scale. count: how many at least."""
    import numpy as np

    from dpo_trainer.data.dataset import PairDataset, TokenPair

    rng = np.random.default_rng(0)

    def tokens(length: int) -> Any:
        return rng.integers(3, vocabulary, max(1, length // scale)).astype(np.int32)

    times = -(-count // len(LENGTHS))
    return PairDataset.from_pairs(
        TokenPair(*(tokens(length) for length in lengths), row) for row, lengths in enumerate(LENGTHS * times)
    )


def make_model(folder: Path, *, hidden: int, layers: int, heads: int, inner: int, vocabulary: int) -> None:
    """Save a Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=max(1, heads // 2), initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def a_job(device: str, steps: int, *, adapter: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    """A job as a document; keyword arguments go to spec.training."""
    settings = {
        "globalBatchSize": 8, "learningRate": 1e-3, "precision": "fp32", "device": device, "maxSteps": steps,
        "microBatchTokens": 256, "gradientCheckpointing": False, **training,
    }  # fmt: skip
    spec = {
        "model": {"name": "random"}, "data": {"train": {"source": "random.jsonl"}}, "training": settings,
        "gpusPerNode": 0 if device == "cpu" else 1, "checkpoint": {"everySteps": 1000},
        **({"adapter": adapter} if adapter else {}),
    }  # fmt: skip
    return {"metadata": {"name": "check"}, "spec": spec}


def losses_of(
    root: Path, device: str, steps: int, *, stop: int | None = None, attempt: int = 1, **settings: Any
) -> list[float]:
    """Losses of the steps that a run has by now. root: its work folder. stop: have a signal come after so many."""
    found: list[float] = apart(_losses, str(root), a_job(device, steps, **settings), attempt, stop)
    return found


def _losses(root: str, document: dict[str, Any], attempt: int, stop: int | None) -> list[float]:
    from tests.numerics.jobs import train_on_rank

    work = WorkDir(Path(root))
    prepare(work)
    run = train_on_rank(document, work.root, attempt, (0, stop) if stop else None)
    return [line["loss"] for line in run["steps"]]
