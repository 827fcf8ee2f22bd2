"""Launchers in processes of their own, with scripts as ranks."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from dpo_operator.api.reports import Termination
from tests import tied

PRELUDE = """
import json, os, signal, sys, time
from pathlib import Path
from dpo_trainer.runtime import termination  # at the start: a rank that is told to end has little time
rank = int(os.environ["LOCAL_RANK"])
out = Path(os.environ["OUT"])
def leave(code, message=""):
    termination.write_termination(Path(os.environ["DPO_TERMINATION_LOG"]), termination.build_termination("train", 1, code, message, rank=rank))
    os._exit(code)
def others(): # wait until every rank has called this
    (out / f"here-{rank}").touch()
    while len(list(out.glob("here-*"))) < int(os.environ["LOCAL_WORLD_SIZE"]): time.sleep(0.01)
"""


class Pod:
    """A launcher in a process of its own, whose ranks run a script.

    under: command that starts the launcher; its own command line follows.
    """

    def __init__(self, folder: Path, script: str, ranks: int, *, under: Sequence[str] = (), **environment: str) -> None:
        path = folder / "rank.py"
        path.write_text(PRELUDE + textwrap.dedent(script))
        self.log = folder / "termination.json"
        body = (
            "import sys; from pathlib import Path; from dpo_trainer.launch import launcher, supervisor\n"
            "grace = supervisor.GracePeriods(notice=0.5, end=1.0, dump=0.5, collect=0.5, together=1.0, orphaned=1.0)\n"
            f"sys.exit(launcher.run(Path('job'), Path({str(folder)!r}), [sys.executable, {str(path)!r}], grace))"
        )
        self.process = tied.popen(
            [*under, sys.executable, "-c", body],
            env={
                **os.environ,
                "OUT": str(folder),
                "PET_NPROC_PER_NODE": str(ranks),
                "DPO_TERMINATION_LOG": str(self.log),
                **environment,
            },
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> tuple[int, str, Termination | None]:
        """Exit code, log, and termination message."""
        log = self.process.communicate(timeout=60)[1]
        termination = Termination.from_text(self.log.read_text()) if self.log.exists() else None
        return self.process.returncode, log, termination


def wait_for(condition, seconds: float = 30.0) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)
