"""Small real jobs for the numerics tests, and what runs them on a rank. torch is only imported on ranks."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from dpo_operator.api.types import DPOJob
from dpo_trainer.checkpoint.folder import CheckpointFolder
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.runtime.stop import StopRequest
from dpo_trainer.runtime.workdir import WorkDir

VOCABULARY = 96


def a_job(**training: Any) -> dict[str, Any]:
    """A job on one or two CPU ranks, as a document; keyword arguments go to spec.training."""
    settings = {
        "globalBatchSize": 8, "microBatchSize": 2, "learningRate": 2e-3, "precision": "fp32", "device": "cpu",
        "gradientCheckpointing": False, "seed": 7, **training,
    }  # fmt: skip
    return {
        "metadata": {"name": "small"},
        "spec": {
            "model": {"name": "small"},
            "data": {"train": {"source": "small.jsonl"}},
            "training": settings,
            "checkpoint": {"everySteps": 1000},
        },
    }


def some_pairs(count: int, *, seed: int = 0) -> PairDataset:
    """Random pairs of very unequal length; the prompt is part of both answers' context."""
    rng = np.random.default_rng(seed)

    def tokens(longest: int) -> np.ndarray:
        return rng.integers(3, VOCABULARY, int(rng.integers(1, longest + 1))).astype(np.int32)

    return PairDataset.from_pairs(TokenPair(tokens(12), tokens(9), tokens(20), row) for row in range(count))


def make_model(folder: Path, *, tied: bool = False, layers: int = 2, **settings: Any) -> None:
    """Save a small Llama with random weights large enough to have opinions."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.15,
        tie_word_embeddings=tied, **settings,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


class StopAfter(StopRequest):
    """A stop request that one rank gets when so many steps are finished, that is during the next one."""

    def __init__(self, telemetry: Any, rank: int, steps: int) -> None:
        self._telemetry, self._mine, self._steps = telemetry, rank == telemetry.rank, steps

    def is_set(self) -> bool:
        return self._mine and self._telemetry.progress.step >= self._steps


def train_on_rank(
    document: dict[str, Any], root: Path, attempt: int = 1, stop_after: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Run the trainer's loop as one rank.

    stop_after: rank that is asked to stop, and the finished steps by then.
    Returns "steps": the training lines of metrics.jsonl afterwards, "evals": the others, "warnings": codes,
    "status": of the outcome.
    """
    from dpo_trainer.telemetry import Telemetry
    from dpo_trainer.training import train

    work, rank, warnings = WorkDir(root), int(os.environ["RANK"]), []
    telemetry = Telemetry(
        "train",
        attempt,
        work,
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        checkpoints=CheckpointFolder(work.checkpoints),
    )

    def warning(code: str, _text: str, **_: Any) -> None:
        # Whether a save is slow is a matter of this machine's disk.
        if telemetry.rank == 0 and code != "SlowCheckpoint":
            warnings.append(code)

    telemetry.warning = warning  # type: ignore[method-assign]
    stop = StopAfter(telemetry, *stop_after) if stop_after else StopRequest()
    outcome = train.run(DPOJob.model_validate(document), work, telemetry=telemetry, attempt=attempt, stop=stop)
    telemetry.close()
    found = [json.loads(line) for line in work.metrics.read_text().splitlines()] if rank == 0 else []
    return {
        "steps": [line for line in found if "loss" in line],
        "evals": [line for line in found if "eval_loss" in line],
        "warnings": warnings,
        "status": outcome.status,
    }


def plain_training(document: dict[str, Any], model: Path, data: PairDataset, total_steps: int) -> dict[str, Any]:
    """The same training written as plainly as possible: one process, whole logits, torch.optim.AdamW, no engine.

    Returns "steps": metrics per step, "weights": the final float32 parameters by name.
    """
    import torch
    from torch.nn.functional import logsigmoid
    from transformers import AutoModelForCausalLM

    from dpo_trainer.batches.sampler import StepPlan
    from dpo_trainer.training.schedule import learning_rate, warmup_steps

    spec = DPOJob.model_validate(document).spec
    options: dict[str, Any] = {}
    if spec.adapter.type == "qlora":
        from transformers import BitsAndBytesConfig

        nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, **nf4)
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **options)
    # Without dropout, as the trainer; a 4-bit base, which evaluation would repack for this CPU, has none.
    policy.train(spec.adapter.type == "qlora")
    if spec.adapter.type != "none":
        from dpo_trainer.model.adapters import add_lora

        policy = add_lora(policy, spec.adapter, seed=spec.training.seed)
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.dim() >= 2], "weight_decay": spec.training.weight_decay},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(spec.training.adam_beta1, spec.training.adam_beta2),
        eps=spec.training.adam_epsilon,
    )

    def logps(pair: TokenPair) -> torch.Tensor:
        sums = []
        for answer in (pair.chosen, pair.rejected):
            ids = torch.tensor(np.concatenate([pair.prompt, answer])[None].astype(np.int64))
            logits = policy(ids).logits[0, :-1].log_softmax(-1)
            per_token = logits.gather(1, ids[0, 1:, None])[:, 0]
            sums.append(per_token[len(pair.prompt) - 1 :].sum())
        return torch.stack(sums)

    with torch.no_grad():
        reference = torch.stack([logps(data[i]) for i in range(len(data))])
    training, beta = spec.training, spec.method.strength
    plan = StepPlan(len(data), training.global_batch_size, seed=training.seed, shuffle=training.shuffle)
    warmup = warmup_steps(training.warmup_ratio, total_steps)
    steps = []
    for step in range(1, total_steps + 1):
        indices = plan.step(step)
        now = torch.stack([logps(data[int(i)]) for i in indices])
        rewards = beta * (now - reference[indices])
        loss = -logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), training.max_grad_norm or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step, peak=spec.learning_rate, total_steps=total_steps, warmup=warmup, shape=training.scheduler,
                floor=training.min_learning_rate_ratio,
            )  # fmt: skip
        optimizer.step()
        optimizer.zero_grad()
        means = rewards.detach().mean(dim=0).tolist()
        steps.append({
            "loss": loss.item(), "rewards/chosen": means[0], "rewards/rejected": means[1], "grad_norm": float(norm),
            "rewards/margins": means[0] - means[1],
            "rewards/accuracies": float((rewards[:, 0] > rewards[:, 1]).float().mean()),
        })  # fmt: skip
    weights = {name: p.detach().numpy() for name, p in policy.named_parameters() if p.requires_grad}
    return {"steps": steps, "weights": weights}
