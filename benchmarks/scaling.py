"""Whether cost grows with the data and what more ranks bring on one machine: `make bench-scaling`.

The same loop as in against_trl, on the small shape: once, four and sixteen times the pairs; then one, two and four ranks over gloo, which
share this machine's cores, so that more ranks than cores can't be faster.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import inputs
from benchmarks.inputs import REPOSITORY, SHAPES, TUNED
from tests import tied
from tests.scratch import scratch_folder

RANK = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from benchmarks.job import a_job, train_here
print(json.dumps(train_here(a_job(adapter=False), Path(sys.argv[1]), Path(sys.argv[2]))))
"""


def seconds(folder: Path, *, ranks: int) -> float:
    """Seconds that one epoch takes on so many ranks, the reference pass included."""
    with socket.socket() as probe, scratch_folder() as scratch:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        running = []
        for rank in range(ranks):
            place = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": ranks,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **TUNED, **{k: str(v) for k, v in place.items()}}
            command = [sys.executable, "-c", RANK, str(folder), scratch]
            with (Path(scratch) / f"{rank}.out").open("wb") as out, (Path(scratch) / f"{rank}.err").open("wb") as err:
                running.append(tied.popen(command, env=environment, cwd=REPOSITORY, stdout=out, stderr=err))
        while any(process.poll() is None for process in running) and not any(process.poll() for process in running):
            time.sleep(0.1)
        for rank, process in enumerate(running):
            if process.poll():
                for other in running:
                    other.kill()
                raise SystemExit((Path(scratch) / f"{rank}.err").read_text()[-2000:])
        return float(json.loads((Path(scratch) / "0.out").read_text().splitlines()[-1])["seconds"])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=3, help="runs of each; medians are printed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16], help="multiples of the data")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4])
    inputs.add_arguments(parser)
    options = parser.parse_args()
    console, pairs = Console(width=120), SHAPES["S"].pairs
    with scratch_folder() as scratch:
        folders = {size: Path(scratch) / str(size) for size in options.sizes}
        for size, folder in folders.items():
            inputs.make_data(folder, options.dialogues, options.tokenizer, pairs=pairs, repeat=size)
            inputs.make_model(folder, SHAPES["S"])
        runs: dict[int, list[float]] = {size: [] for size in options.sizes}
        for _ in range(options.times):
            for size, folder in folders.items():
                runs[size].append(size * pairs / seconds(folder, ranks=1))
        table = Table(
            "data", "pairs", "pairs/s", "÷ the first", title=f"Cost of more data, one rank, {options.times} runs"
        )
        rates = {size: statistics.median(found) for size, found in runs.items()}
        for size, rate in rates.items():
            table.add_row(f"{size}×", f"{size * pairs:,}", f"{rate:.2f}", f"{rate / rates[options.sizes[0]]:.3f}")
        console.print(table)
        if not options.ranks:
            return
        folder, size = folders[options.sizes[0]], options.sizes[0]
        by_ranks = {
            ranks: size * pairs / statistics.median(seconds(folder, ranks=ranks) for _ in range(options.times))
            for ranks in options.ranks
        }
        table = Table(
            "ranks", "pairs/s", "÷ one rank", title=f"Ranks over gloo on this machine's {os.cpu_count()} cores"
        )
        for ranks, rate in by_ranks.items():
            table.add_row(str(ranks), f"{rate:.2f}", f"{rate / by_ranks[options.ranks[0]]:.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
