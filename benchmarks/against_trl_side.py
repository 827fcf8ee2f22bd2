"""One run of one side of against_trl, in a process of its own; prints a line of JSON."""

import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.against_trl import BATCH, RATE

CLOCK = time.process_time if os.environ.get("CPU") else time.monotonic
LORA_RANK, TARGETS = 8, ["q_proj", "v_proj"]


def ours(folder: Path, scratch: Path, lora: bool) -> tuple[float, list[float]]:
    """The trainer's own loop with DeepSpeed, checkpoints and metrics."""
    from dpo_operator.api.types import DPOJob
    from dpo_trainer import train
    from dpo_trainer.outcome import StopRequest
    from dpo_trainer.telemetry import Telemetry
    from dpo_trainer.workdir import WorkDir

    work = WorkDir(scratch / "work")
    work.root.mkdir()
    shutil.copytree(folder / "data", work.root / "data")
    (work.root / "model").symlink_to(folder / "model")
    adapter = {"type": "lora", "rank": LORA_RANK, "alpha": 16, "targetModules": TARGETS} if lora else {"type": "none"}
    job = DPOJob.model_validate({
        "metadata": {"name": "bench"},
        "spec": {
            "model": {"name": "bench"}, "data": {"train": {"source": "bench"}}, "adapter": adapter,
            "training": {
                "globalBatchSize": BATCH, "learningRate": RATE, "precision": "fp32", "device": "cpu", "shuffle": False,
                "gradientCheckpointing": False, "scheduler": "constant", "warmupRatio": 0.0,
                "microBatchTokens": int(os.environ.get("BENCH_TOKENS", "1024")),
                "packing": os.environ.get("BENCH_PACKING", "shared"),
            },
            "gpusPerNode": 0,
        },
    })  # fmt: skip
    started: list[float] = []

    class Timed(Telemetry):
        def activity(self, text: str) -> None:
            if text.startswith("reference log-probs") and not started:
                started.append(CLOCK())
            super().activity(text)

    telemetry = Timed("train", 1, work)
    ended: list[float] = []
    original = telemetry.step

    def step(*arguments: Any, **news: Any) -> None:
        ended.append(CLOCK())
        original(*arguments, **news)

    telemetry.step = step  # type: ignore[method-assign]
    train.run(job, work, telemetry=telemetry, attempt=1, stop=StopRequest())
    telemetry.close()
    lines = [json.loads(line) for line in work.metrics.read_text().splitlines()]
    return ended[-1] - started[0], [line["loss"] for line in lines if "loss" in line]


def trl(folder: Path, scratch: Path, lora: bool, *, best: bool) -> tuple[float, list[float]]:
    """TRL's DPOTrainer. best: precomputed reference log-probs and one pair at a time, its fastest setting on a CPU."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from dpo_trainer.dataset import PairDataset

    class SameTokensSameOrder(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Ended(TrainerCallback):
        at = 0.0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            Ended.at = CLOCK()

    data = PairDataset.open(folder / "data" / "train")
    rows = [
        {"prompt_ids": p.prompt.tolist(), "chosen_ids": p.chosen.tolist(), "rejected_ids": p.rejected.tolist()}
        for p in (data[i] for i in range(len(data)))
    ]
    vocabulary = {f"t{i}": i for i in range(50257)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")),
        eos_token="t50256",
        pad_token="t0",
    )
    size = 1 if best else 4
    arguments = DPOConfig(
        output_dir=str(scratch), per_device_train_batch_size=size, gradient_accumulation_steps=BATCH // size,
        num_train_epochs=1, learning_rate=RATE, lr_scheduler_type="constant", logging_steps=1, beta=0.1, max_length=None,
        use_cpu=True, bf16=False, report_to=[], save_strategy="no", max_grad_norm=1.0, gradient_checkpointing=False,
        disable_dropout=True, optim="adamw_torch", weight_decay=0.0, precompute_ref_log_probs=best, disable_tqdm=True,
    )  # fmt: skip
    policy: Any = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    if lora:
        from dpo_operator.api.training import Adapter
        from dpo_trainer.model import add_lora

        adapter = {"type": "lora", "rank": LORA_RANK, "alpha": 16, "targetModules": TARGETS}
        policy = add_lora(policy, Adapter.model_validate(adapter), seed=0)
    started = CLOCK()
    trainer = SameTokensSameOrder(
        model=policy, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        callbacks=[Ended()],
    )  # fmt: skip
    # Without precomputation making the trainer copies the model, which is loading; with it the reference pass is inside.
    started = started if best else CLOCK()
    trainer.train()
    return Ended.at - started, [line["loss"] for line in trainer.state.log_history if "rewards/chosen" in line]


def main() -> None:
    """Arguments: side, folder of the inputs, scratch folder, 1 for LoRA."""
    side, folder, scratch, lora = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "1"
    import torch

    from dpo_trainer.dataset import PairDataset

    torch.set_num_threads(1)
    sides = {
        "ours": lambda: ours(folder, scratch, lora),
        "trl-best": lambda: trl(folder, scratch, lora, best=True),
        "trl-plain": lambda: trl(folder, scratch, lora, best=False),
    }
    seconds, losses = sides[side]()
    pairs = len(PairDataset.open(folder / "data" / "train"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"pairs_per_second": pairs / seconds, "peak_mib": peak, "losses": losses}))


if __name__ == "__main__":
    main()
