"""JSON collectives between ranks. torch's own object collectives would unpickle the peers' data."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.termination import classify
from dpo_trainer.runtime.untrusted import is_panic

T = TypeVar("T")

# How long a rank waits for the others' answers, seconds.
AGREEMENT_SECONDS = 21_600.0


class Ranks:
    """The ranks of a process group over gloo, or a single process without one."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """group: None means the default group."""
        joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if joined else 0
        self.world_size = dist.get_world_size() if joined else 1
        self._group = group

    def own_group(self) -> "Ranks":
        """The same ranks in a process group of their own, over gloo also where GPUs use NCCL. Collective.

        Ranks do unequal work before they agree, such as to verify a checkpoint: here they wait for one another up to AGREEMENT_SECONDS.
        A group may be used in one thread at a time.
        """
        if self.world_size == 1:
            return Ranks()
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=AGREEMENT_SECONDS))
        assert isinstance(group, dist.ProcessGroup), "every rank is a member"
        return Ranks(group)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's JSON value, on every rank, by rank. Collective."""
        if self.world_size == 1:
            return [json.loads(json.dumps(value))]
        raw = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(raw)], dtype=torch.int64), group=self._group)
        longest = max(int(size) for size in sizes)
        mine = torch.zeros(longest, dtype=torch.uint8)
        mine[: len(raw)] = raw
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(parts, mine, group=self._group)
        return [json.loads(part[: int(size)].cpu().numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, on every rank's CPU. Collective. values: any shape; a copy is summed."""
        total = values.to("cpu", copy=True)
        if self.world_size > 1:
            dist.all_reduce(total, group=self._group)
        return total

    def run_on_all(self, work: Callable[[], T]) -> list[T]:
        """Do work on every rank and gather the JSON results. Collective.

        When it fails on one rank, every rank raises TrainerError with that rank's exit code and message, so that all
        leave the protocol at the same place. An error of a collective within work is raised as it is: the peers may be unreachable.
        """
        result, failure, cause = None, None, None
        try:
            result = work()
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise  # a stop
            code, message = classify(error)
            if code is ExitCode.PEER_LOST and isinstance(error, RuntimeError):
                raise
            failure, cause = {"code": int(code), "message": message}, error
        answers = self.gather({"result": result, "failure": failure})
        for rank, answer in enumerate(answers):
            if answer["failure"]:
                where = f"rank {rank}: " if self.world_size > 1 else ""
                raise TrainerError(ExitCode(answer["failure"]["code"]), where + answer["failure"]["message"]) from cause
        return [answer["result"] for answer in answers]

    def run_on_rank_zero(self, work: Callable[[], T]) -> T:
        """Do work on rank 0; its JSON result, or its failure, reaches every rank. Collective."""
        results = self.run_on_all(lambda: work() if self.rank == 0 else None)
        return results[0]  # type: ignore[return-value]  # not None: rank 0 has done the work
