"""Run a function as the ranks of a gloo world, each in a process of its own."""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from dpo_operator.cli.parent import request_signal
from tests.ports import free_port

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.numerics.preload"])


class RankFailed(AssertionError):
    """A rank raised; the message is its traceback. kind: name of the exception's type."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def on_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 600, patience: float | None = None
) -> list[Any]:
    """Call function(*args) on every rank of a world; what each returned, by rank.

    function: at the top level of a module; it finds RANK, WORLD_SIZE and MASTER_* in its environment.
    patience: seconds after which the other ranks of one that failed are killed, as the launcher would do.
    Raises RankFailed with the first rank's error that is not only the echo of another rank's end.
    """
    port = free_port()
    ends: dict[Connection, int] = {}
    processes = []
    for rank in range(world_size):
        mine, theirs = _context.Pipe(duplex=False)
        process = _context.Process(target=_rank, args=(theirs, rank, world_size, port, function, args), daemon=True)
        process.start()
        theirs.close()
        ends[mine] = rank
        processes.append(process)
    results: dict[int, Any] = {}
    errors: list[tuple[int, str, str]] = []
    deadline = time.monotonic() + timeout
    try:
        while ends:
            ready = wait(list(ends), timeout=max(0.0, deadline - time.monotonic()))
            if not ready and errors:
                break
            if not ready:
                raise TimeoutError(f"ranks {sorted(ends.values())} of {world_size} did not finish within {timeout} s")
            for end in ready:
                rank = ends.pop(end)  # type: ignore[index]
                try:
                    good, value = end.recv()  # type: ignore[union-attr]
                except EOFError:
                    good, value = False, ("EOFError", f"rank {rank} ended without an answer")
                if good:
                    results[rank] = value
                else:
                    errors.append((rank, *value))
                    deadline = min(deadline, time.monotonic() + (timeout if patience is None else patience))
    finally:
        for process in processes:
            process.join(timeout=0 if ends else 10)
            if process.is_alive():
                process.kill()
    if errors:
        own = [e for e in errors if "closed by peer" not in e[2]] or errors
        raise RankFailed(own[0][1], f"rank {own[0][0]}:\n{own[0][2]}")
    return [results[rank] for rank in range(world_size)]


def _rank(
    end: Connection, rank: int, world_size: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    # The fork server ends with the tests' process, and the ranks with the fork server.
    request_signal(signal.SIGKILL, os.getppid())
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # what the server imported stays: DeepSpeed collects often, and would look through all of it
    try:
        end.send((True, function(*args)))
    except BaseException as error:
        end.send((False, (type(error).__name__, traceback.format_exc())))
    end.close()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)
