"""What `dpo plan` predicts beside what training takes here: peak memory and time of a step. `make bench-plan`.

Each case is a random model and random pairs that go through the train phase as it runs in a pod, as processes of their own; their
peak is what the kernel says of them. benchmarks/README.md has the last table.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dpo_operator.api import names
from dpo_operator.api.models import hardware
from dpo_operator.api.models.config import shape_of
from dpo_operator.api.reports import TokenReport
from dpo_operator.api.types import DPOJob
from dpo_operator.sizing import proposal
from dpo_operator.sizing.work import Pairs
from tests import tied
from tests.scratch import scratch_folder

MIB = 1 << 20
STEPS = 2
LORA = {"type": "lora", "rank": 8, "targetModules": ["all-linear"]}


def llama(hidden: int, layers: int, mlp: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    """config.json of a model whose heads are 64 wide, two queries to a key."""
    return {
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": mlp, "vocab_size": vocabulary,
        "num_attention_heads": hidden // 64, "num_key_value_heads": max(1, hidden // 128), "max_position_embeddings": 8192, **more,
    }  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One setting. lengths: tokens of prompt, chosen and rejected answer of every pair. pairs: of a micro-batch; a step has two."""

    name: str
    model: dict[str, Any]
    lengths: tuple[int, int, int] = (64, 64, 64)
    pairs: int = 1
    training: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)

    def job(self) -> dict[str, Any]:
        """The DPOJob."""
        tokens = self.pairs * sum(self.lengths)
        training = {
            "globalBatchSize": 2 * self.pairs, "microBatchTokens": tokens, "microBatchSize": self.pairs, "maxSteps": STEPS,
            "precision": "fp32", "gradientCheckpointing": False, "device": "cpu", **self.training,
        }  # fmt: skip
        spec = {
            "model": {"name": "model"}, "data": {"train": {"source": "pairs"}, "maxLength": sum(self.lengths)},
            "training": training, "gpusPerNode": 0, "checkpoint": {"everySteps": 1_000_000, "async": False},
        }  # fmt: skip
        return {"metadata": {"name": "plan"}, "spec": spec | ({"adapter": self.adapter} if self.adapter else {})}


# Where the memory goes differs: the optimizer, the activations, the output layer, frozen weights.
WIDE, DEEP, WORDS = llama(768, 8, 2048, 8192), llama(256, 12, 704, 4096), llama(256, 4, 704, 65536)
LONG = (256, 256, 256)
CASES = (
    Case("65M", WIDE),
    Case("65M, bf16", WIDE, training={"precision": "bf16"}),
    Case("65M, LoRA", WIDE, adapter=LORA),
    Case("11M, 3k tokens", DEEP, LONG, 4),
    Case("11M, 3k tokens, checkpointing", DEEP, LONG, 4, {"gradientCheckpointing": True}),
    Case("11M, 3k tokens, bf16", DEEP, LONG, 4, {"precision": "bf16"}),
    Case("11M, 3k tokens, LoRA", DEEP, LONG, 4, adapter=LORA),
    Case("11M, 3k tokens, plain", DEEP, (192, 192, 192), 4, {"packing": "plain", "microBatchTokens": 3072}),
    Case("37M, 65k words", WORDS, (64, 224, 224), 2),
    Case("20M, 65k words, tied", WORDS | {"tie_word_embeddings": True}, (64, 224, 224), 2),
    Case("37M, 65k words, LoRA, bf16", WORDS, (64, 224, 224), 2, {"precision": "bf16"}, LORA),
)


def make_inputs(folder: Path, case: Case) -> None:
    """Write a random model and random pairs as prepare would."""
    # Else DeepSpeed, which transformers imports, says on the standard output that it found no GPU.
    os.environ["DS_ACCELERATOR"] = "cpu"
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from dpo_trainer.data.dataset import PairDataset, TokenPair

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**case.model)).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    pairs = [
        TokenPair(*(rng.integers(3, case.model["vocab_size"], n).astype(np.int32) for n in case.lengths), row)
        for row in range(2 * case.pairs)
    ]
    PairDataset.from_pairs(pairs).save(folder / "data" / "train")


def measure_flops() -> float:
    """Operations per second of fp32 products of the size that layers have, on one core, with whatever else runs there now."""
    script = (
        "import time, torch\ntorch.set_num_threads(1)\na, b = torch.randn(1024, 768), torch.randn(768, 2048)\n"
        "a @ b\nstart, count = time.perf_counter(), 0\nwhile time.perf_counter() - start < 1.5:\n    a @ b; count += 1\n"
        "print(count * 2 * 1024 * 768 * 2048 / (time.perf_counter() - start))"
    )
    return float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


def train(folder: Path, job: dict[str, Any]) -> tuple[int, float]:
    """Peak bytes of the train phase's largest process, and seconds of its last step."""
    job_file = folder / "job.json"
    job_file.write_text(json.dumps(job))
    command = [sys.executable, "-m", "dpo_trainer", "launch", "--job-file", str(job_file), "--work-dir", str(folder)]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", names.ENV_METRICS_PORT: "0", "DPO_BIND_ADDRESS": "127.0.0.1",
    }  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = tied.popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        # The kernel's figure for a process that ended covers those that it waited for.
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{(folder / 'log').read_text(errors='replace')[-3000:]}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return usage.ru_maxrss * 1024, [line["step_seconds"] for line in lines if "loss" in line][-1]


def run(case: Case) -> dict[str, Any]:
    """One case: predicted and measured."""
    job = DPOJob.model_validate(case.job())
    prompt, chosen, rejected = case.lengths
    found = TokenReport(prompt=prompt, chosen=chosen, rejected=rejected, longest=sum(case.lengths))
    pairs = Pairs.of(job.spec, found, 2 * case.pairs)
    with scratch_folder() as scratch:
        # In a process of its own, so that this one stays small: a child's peak begins with its parent's.
        maker = multiprocessing.get_context("spawn").Process(target=make_inputs, args=(Path(scratch), case))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit(f"{case.name}: the model could not be made")
        # Just before, so that what slows one down slows the other down.
        device = hardware.cpu(measure_flops())
        peak, seconds = train(Path(scratch), case.job())
    planned = proposal.Job(job.spec, shape_of(case.model), pairs, device)
    memory, time = planned.memory(), planned.time()
    return {
        "case": case.name, "phase": memory.peak_phase, "parts": memory.parts, "gflops": device.flops / 1e9,
        "predicted_mib": memory.peak / MIB, "measured_mib": peak / MIB, "ratio": memory.peak / peak,
        "predicted_seconds": time.seconds, "measured_seconds": seconds, "time_ratio": time.seconds / seconds,
    }  # fmt: skip


def table(lines: Sequence[dict[str, Any]]) -> Table:
    """The cases for people."""
    made = Table(title="Predicted and measured", caption="one core, whose speed is measured before each case")
    for name in ("case", "largest in"):
        made.add_column(name, no_wrap=True)
    for name in ("predicted MiB", "measured MiB", "ratio", "predicted s", "measured s", "ratio"):
        made.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        made.add_row(
            line["case"], line["phase"], f"{line['predicted_mib']:,.0f}", f"{line['measured_mib']:,.0f}", f"{line['ratio']:.2f}",
            f"{line['predicted_seconds']:.2f}", f"{line['measured_seconds']:.2f}", f"{line['time_ratio']:.2f}",
        )  # fmt: skip
    return made


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.planner", description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], metavar="CASE")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    given = parser.parse_args()
    lines = []
    progress = Console(stderr=True, highlight=False)
    for case in CASES:
        if given.cases is None or case.name in given.cases:
            lines.append(run(case))
            progress.print(f"{case.name}: {lines[-1]['ratio']:.2f}", markup=False)
    if given.json:
        print(json.dumps(lines, indent=1))
    else:
        out = Console(highlight=False)
        (out if out.is_terminal else Console(width=140, highlight=False)).print(table(lines))


if __name__ == "__main__":
    main()
