"""Processor time of a micro-batch on one rank, with DeepSpeed's module hooks and without: `python -m benchmarks.hooks`.

Hooks gather a module's weights before it runs. One rank has them all, so the trainer removes its hooks. Both are measured in one
process with one engine, on a small model, where hooks weigh most.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

LAYERS, HIDDEN, TIMES = 16, 64, 8


def measure(layers: int, times: int, adapter: bool) -> dict[str, float]:
    """Least processor time of a forward and backward pass over two pairs: "hooks" and "without", seconds."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    import torch

    from benchmarks.gpu.jobs import make_model
    from benchmarks.methods import LORA
    from dpo_operator.api.types import DPOJob
    from dpo_trainer.batches.batch import collate
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.distributed.zero3_internals import Zero3Internals
    from dpo_trainer.engine.engine import Engine
    from tests.numerics.jobs import VOCABULARY, a_job, some_pairs

    torch.set_num_threads(1)
    document: dict[str, Any] = a_job(precision="bf16")
    if adapter:
        document["spec"]["adapter"] = LORA
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), hidden=HIDDEN, layers=layers, heads=4, inner=3 * HIDDEN, vocabulary=VOCABULARY)
        remove = Zero3Internals.remove_module_hooks
        Zero3Internals.remove_module_hooks = lambda self: None  # type: ignore[method-assign]
        engine = Engine(DPOJob.model_validate(document).spec, Path(folder), join_world("cpu"))
    batch, found = collate(some_pairs(2), range(2)), {}
    for side in ("hooks", "without"):
        if side == "without":
            remove(engine.zero)
        least = float("inf")
        for _ in range(times + 2):  # the first ones warm up
            began = time.process_time()
            engine.backward(engine.score(batch).answers.sum(), last=True)
            least = min(least, time.process_time() - began)
            engine.step(1e-6)
        found[side] = least
    return found


def main() -> None:
    """Print a line for all weights or for adapters."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--times", type=int, default=TIMES)
    options = parser.parse_args()
    found = measure(LAYERS, options.times, options.lora)
    each = (found["hooks"] - found["without"]) / LAYERS
    print(
        f"{'LoRA' if options.lora else 'all weights'}, {LAYERS} layers: with hooks {found['hooks'] * 1000:.0f} ms, without "
        f"{found['without'] * 1000:.0f} ms, {found['hooks'] / found['without']:.2f} times; {each * 1000:.1f} ms a layer"
    )


if __name__ == "__main__":
    main()
