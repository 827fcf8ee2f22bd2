"""One run of one side of against_trl, in a process of its own; prints a line of JSON."""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.clocks import Clocks
from benchmarks.inputs import SHAPES, VOCABULARY
from benchmarks.job import BATCH, LORA, RATE, a_job, train_here


def ours(folder: Path, scratch: Path, lora: bool) -> dict[str, Any]:
    """The trainer's own loop. BENCH_TRAINING: JSON, more of spec.training."""
    job = a_job(adapter=lora, **json.loads(os.environ.get("BENCH_TRAINING", "{}")))
    return train_here(job, folder, scratch)


def trl(folder: Path, scratch: Path, lora: bool, *, best: bool) -> dict[str, Any]:
    """TRL's DPOTrainer. best: precomputed reference log-probs and one pair at a time, its fastest setting on a CPU."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from dpo_trainer.data.dataset import PairDataset

    class SameTokensSameOrder(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Ended(TrainerCallback):
        at = 0.0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            Ended.at = time.monotonic()

    data = PairDataset.open(folder / "data" / "train")
    rows = [
        {"prompt_ids": p.prompt.tolist(), "chosen_ids": p.chosen.tolist(), "rejected_ids": p.rejected.tolist()}
        for p in (data[i] for i in range(len(data)))
    ]
    vocabulary = {f"t{i}": i for i in range(VOCABULARY)}
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
        disable_dropout=True, optim="adamw_torch_fused", weight_decay=0.0, precompute_ref_log_probs=best, disable_tqdm=True,
    )  # fmt: skip
    policy: Any = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    if lora:
        from dpo_operator.api.model import Adapter
        from dpo_trainer.model.adapters import add_lora

        policy = add_lora(policy, Adapter.model_validate(LORA), seed=0)
    started = time.monotonic()
    trainer = SameTokensSameOrder(
        model=policy, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        callbacks=[Ended()],
    )  # fmt: skip
    # Without precomputation making the trainer copies the model, which is loading; with it the reference pass is inside.
    started = started if best else time.monotonic()
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "rewards/chosen" in line]
    return {"seconds": Ended.at - started, "losses": losses}


def breakdown(folder: Path, scratch: Path) -> dict[str, Any]:
    """The same run as `ours` with clocks on its parts, and the least that each part could take."""
    import torch

    from dpo_trainer.data.dataset import PairDataset
    from dpo_trainer.engine.engine import Engine
    from dpo_trainer.losses.metrics import Totals
    from dpo_trainer.losses.objective import Objective
    from dpo_trainer.model import head
    from dpo_trainer.model.policy import Policy
    from dpo_trainer.training import evaluate, milestones, passes, reference, step

    clocks = Clocks()
    for name in ("forward", "backward"):
        setattr(head._TokenLogps, name, staticmethod(clocks.around("head", getattr(head._TokenLogps, name))))
    for owner, name, part in (
        (Policy, "forward", "body"), (Engine, "score", "body"), (Engine, "backward", "body"), (Engine, "step", "optimizer"),
        (Objective, "loss", "losses and metrics"), (step, "sums", "losses and metrics"), (Totals, "add", "losses and metrics"),
        (step, "logps_of", "losses and metrics"), (Totals, "over_ranks", "losses and metrics"),
        (step, "plan_rounds", "data"), (evaluate, "plan_rounds", "data"),
    ):  # fmt: skip
        setattr(owner, name, clocks.around(part, getattr(owner, name)))
    made, table, conclude = passes.micro_batches_of, passes.logps_table, milestones.Milestones.after_step
    parts: dict[str, float] = {}

    def batches(*arguments: Any, **more: Any) -> Any:
        waiting = made(*arguments, **more)
        ask = clocks.around("data", lambda: next(waiting, None))
        while (batch := ask()) is not None:
            yield batch

    def from_here(*arguments: Any, **more: Any) -> Any:
        clocks.seconds.clear()  # what came before chose the layout, and is not timed on the other side either
        return table(*arguments, **more)

    def up_to_here(self: Any, *arguments: Any, **more: Any) -> Any:
        parts.update(clocks.seconds)
        return conclude(self, *arguments, **more)

    passes.micro_batches_of = step.micro_batches_of = batches
    reference.logps_table = from_here  # type: ignore[attr-defined]
    milestones.Milestones.after_step = up_to_here  # type: ignore[method-assign]
    run = ours(folder, scratch, lora=False)
    parts["everything else"] = run["seconds"] - sum(parts.values())
    clocks.seconds.clear()
    _without_deepspeed(folder, clocks)
    parts["DeepSpeed"], parts["body"] = parts["body"] - clocks.seconds["body"], clocks.seconds["body"]

    shape = next(shape for name, shape in SHAPES.items() if folder.name == name)
    lengths = PairDataset.open(folder / "data" / "train").lengths
    gflops, gbytes = _speed(torch)
    # One forward pass for the reference; one, and a backward pass of twice its products, for the policy.
    passes, weights = 4, shape.body_parameters + 2 * VOCABULARY * shape.hidden
    steps = -(-len(lengths) // BATCH)
    floors = {
        "body": 2 * passes * shape.body_parameters * float(lengths.sum()) / gflops / 1e9,
        "head": 2 * passes * VOCABULARY * shape.hidden * float(lengths[:, 1:].sum()) / gflops / 1e9,
        # Weight, gradient and two moments are read, all but the gradient are written.
        "optimizer": steps * 7 * 4 * weights / gbytes / 1e9,
    }
    order = ("body", "head", "optimizer", "data", "losses and metrics", "DeepSpeed", "everything else")
    return {
        **run, "parts": {name: parts.get(name, 0.0) for name in order}, "floors": floors, "gflops": gflops, "gbytes": gbytes,
        "reference_share": run["reference_seconds"] / run["seconds"],
    }  # fmt: skip


def _without_deepspeed(folder: Path, clocks: Clocks) -> None:
    """The forward and backward passes of one epoch and its reference pass by torch alone, in the same micro-batches."""
    import numpy as np
    import torch
    from transformers import LlamaForCausalLM

    from dpo_operator.api.types import DPOJob
    from dpo_trainer.batches.batch import collate
    from dpo_trainer.batches.packing import rounds
    from dpo_trainer.data.dataset import PairDataset
    from dpo_trainer.model.policy import Policy

    spec = DPOJob.model_validate(a_job(adapter=False)).spec
    data = PairDataset.open(folder / "data" / "train")
    policy = Policy(LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).train())
    policy.pack("shared")
    everything = np.arange(len(data), dtype=np.int64)
    steps = [everything[i : i + BATCH] for i in range(0, len(data), BATCH)]
    for budget, groups in ((spec.eval_batch, [everything]), (spec.micro_batch, steps)):
        for group in groups:
            for [pairs] in rounds(group, data.lengths, layout="shared", budget=budget, world_size=1):
                with torch.set_grad_enabled(budget == spec.micro_batch):
                    sums, _ = policy.forward(collate(data, pairs.tolist(), layout="shared"))
                if sums.requires_grad:
                    clocks.around("body", sums.sum().backward)()
            policy.zero_grad()


def _speed(torch: Any) -> tuple[float, float]:
    """Best GFLOP/s of a square matrix product, and GB/s of a copy (read and written)."""
    a, big = torch.randn(1024, 1024), torch.zeros(1 << 26)
    other = torch.empty_like(big)

    def best(work: Any) -> float:
        times = []
        for _ in range(7):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return min(times)

    return 2 * 1024**3 / best(lambda: a @ a) / 1e9, 2 * 4 * big.numel() / best(lambda: other.copy_(big)) / 1e9


def main() -> None:
    """Arguments: side, folder of the inputs, scratch folder, 1 for LoRA."""
    side, folder, scratch, lora = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "1"
    import torch

    from dpo_trainer.data.dataset import PairDataset

    torch.set_num_threads(1)
    sides = {
        "ours": lambda: ours(folder, scratch, lora),
        "trl-best": lambda: trl(folder, scratch, lora, best=True),
        "trl-plain": lambda: trl(folder, scratch, lora, best=False),
        "breakdown": lambda: breakdown(folder, scratch),
    }
    found = sides[side]()
    pairs = len(PairDataset.open(folder / "data" / "train"))
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found["pairs_per_second"] = pairs / found["seconds"]
    if "saved_seconds" in found:
        found["pairs_per_second_saved"] = pairs / found["saved_seconds"]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
