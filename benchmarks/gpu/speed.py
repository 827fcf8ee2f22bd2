"""Pairs a second of this trainer and of TRL's best setting, on the same pairs and the same random model."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.checks import Check, Setting, apart, seconds_of

# Hidden width, layers, heads, inner width, vocabulary: as Qwen2.5 has them, and one for tests.
SHAPES = {"tiny": (64, 2, 4, 128, 512), "0.5B": (896, 24, 14, 4864, 151_936), "1.5B": (1536, 28, 12, 8960, 151_936)}
BATCH, WARM = 128, 2


def _sizes(setting: Setting) -> tuple[list[str], int, int]:
    """Shapes, pairs of a step, and steps that are timed."""
    return (["tiny"], 16, 1) if setting.tiny else (["0.5B", "1.5B"], BATCH, 10)


def model_of(setting: Setting, name: str) -> Path:
    """The folder of a shape's random model, made once."""
    from benchmarks.gpu.jobs import make_model

    folder = Path(setting.folder) / f"model-{name}"
    if not folder.exists():
        hidden, layers, heads, inner, vocabulary = SHAPES[name]
        make_model(folder, hidden=hidden, layers=layers, heads=heads, inner=inner, vocabulary=vocabulary)
    return folder


def ours(setting: Setting, name: str, batch: int, steps: int, **training: Any) -> dict[str, float]:
    """Pairs a second, model FLOPs utilization and peak memory of the engine's steps."""
    found: dict[str, float] = apart(_ours, setting, name, batch, steps, training)
    return found


def _ours(setting: Setting, name: str, batch: int, steps: int, training: dict[str, Any]) -> dict[str, float]:
    import numpy as np
    import torch

    from benchmarks.gpu.jobs import a_job, pairs
    from dpo_operator.api.types import DPOJob
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.engine.engine import Engine
    from dpo_trainer.losses.objective import Objective
    from dpo_trainer.runtime.stop import StopRequest
    from dpo_trainer.runtime.workdir import WorkDir
    from dpo_trainer.telemetry import Telemetry
    from dpo_trainer.training.examples import Examples
    from dpo_trainer.training.flops import Throughput
    from dpo_trainer.training.startup_checks import choose_layout
    from dpo_trainer.training.step import forward_backward

    document = a_job(setting.device, steps, precision=setting.precision, globalBatchSize=batch, **training)
    spec, data = DPOJob.model_validate(document).spec, pairs(SHAPES[name][4], count=batch)
    folder = model_of(setting, name)
    world = join_world(setting.device)
    engine = Engine(spec, folder, world)
    choose_layout(engine, data, spec, Telemetry("train", 1, WorkDir(Path(setting.folder) / "speed")))
    examples = Examples("training", data, reference=torch.zeros(len(data), 2, 2, dtype=torch.float64))
    objective, stop, everything = Objective(spec.method), StopRequest(), np.arange(batch, dtype=np.int64)

    def step() -> None:
        forward_backward(
            engine,
            objective,
            examples,
            everything,
            stop,
            budget=spec.micro_batch,
            kl_budget=spec.eval_batch,
            is_first=False,
        )
        engine.step(1e-7)

    for _ in range(WARM):
        step()
    seconds = seconds_of(setting.device, lambda: [step() for _ in range(steps)]) / steps
    throughput = Throughput.of(spec, folder, engine.module.layout, world)
    peak = torch.cuda.max_memory_allocated() / 2**30 if setting.device == "cuda" else 0.0
    mfu = throughput.utilization(data.lengths[:batch], seconds) if throughput else 0.0
    return {"pairs": batch / seconds, "mfu": mfu, "GiB": peak}


def speed(setting: Setting) -> Iterator[Check]:
    """This trainer: default settings, and large micro-batches without recomputation."""
    names, batch, steps = _sizes(setting)
    for name in names:
        for title, training in (
            ("default", {"microBatchTokens": 4096, "gradientCheckpointing": True}),
            ("large micro-batches", {"microBatchTokens": 20_480, "gradientCheckpointing": False}),
        ):
            found = ours(setting, name, batch, steps, **training)
            yield Check("speed", f"{name}, {title}, pairs/s", found["pairs"], 0.0, least=True)
            if setting.device == "cuda":
                wanted = 0.4 if name == "1.5B" and title != "default" else None
                yield Check("speed", f"{name}, {title}, MFU", found["mfu"], wanted, least=True)
                yield Check("speed", f"{name}, {title}, peak GiB", found["GiB"])


def trl(setting: Setting) -> Iterator[Check]:
    """TRL on the same pairs with its best settings, and this trainer as a multiple of it."""
    names, batch, steps = _sizes(setting)
    for name in names:
        best = max(apart(_trl, setting, name, batch, steps, size) for size in ((4,) if setting.tiny else (16, 32, 64)))
        mine = ours(setting, name, batch, steps, microBatchTokens=20_480, gradientCheckpointing=False)["pairs"]
        yield Check("trl", f"{name}, TRL's best, pairs/s", best, 0.0, least=True)
        wanted = 1.5 if setting.device == "cuda" else 0.0
        yield Check("trl", f"{name}, ours / TRL's best", mine / best, wanted, least=True)


def _trl(setting: Setting, name: str, batch: int, steps: int, size: int) -> float:
    """Pairs a second of TRL's DPOTrainer with precomputed reference log-probs; 0 when it runs out of memory. size: pairs at a time."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from benchmarks.gpu.jobs import pairs

    class SameTokens(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if setting.device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.monotonic())

    vocabulary = SHAPES[name][4]
    data = pairs(vocabulary, count=batch * (WARM + steps))
    rows = [
        {"prompt_ids": p.prompt.tolist(), "chosen_ids": p.chosen.tolist(), "rejected_ids": p.rejected.tolist()}
        for p in (data[i] for i in range(len(data)))
    ]
    words = {f"t{i}": i for i in range(vocabulary)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")), eos_token="t1", pad_token="t0"
    )
    on_gpu = setting.device == "cuda"
    arguments = DPOConfig(
        output_dir=f"{setting.folder}/trl", per_device_train_batch_size=size, gradient_accumulation_steps=batch // size,
        max_steps=WARM + steps, learning_rate=1e-7, beta=0.1, max_length=None, use_cpu=not on_gpu, bf16=on_gpu, report_to=[],
        save_strategy="no", gradient_checkpointing=False, optim="adamw_torch_fused", precompute_ref_log_probs=True,
        disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    try:
        policy = LlamaForCausalLM.from_pretrained(model_of(setting, name), dtype=torch.float32)
        trainer = SameTokens(
            model=policy,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    except torch.OutOfMemoryError:
        return 0.0
    return steps * batch / (ends[-1] - ends[WARM - 1])
