"""The mirror of a local run: one copy at a time, tried again at the next checkpoint, and never in the way."""

import os
import sys
import time
from pathlib import Path

import pytest

from dpo_operator.cli.mirroring import LocalMirror

pytestmark = pytest.mark.unit


class Mirror:
    """A mirror whose copies write a line each, and fail while a file says so."""

    def __init__(self, root: Path) -> None:
        self.root, self.said = root, []
        self.checkpoints = root / "checkpoints"
        self.checkpoints.mkdir()
        program = (
            "import os, sys, time; open('copies', 'a').write('copy\\n')\nwhile os.path.exists('slow'): time.sleep(0.01)\n"
            "sys.exit(os.path.exists('broken'))"
        )
        argv = [sys.executable, "-c", f"import os; os.chdir({str(root)!r})\n{program}"]
        self.local = LocalMirror(self.checkpoints, argv, dict(os.environ), self.said.append)

    def commit(self, step: int) -> None:
        folder = self.checkpoints / f"step-{step:08d}"
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")

    @property
    def copies(self) -> int:
        path = self.root / "copies"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def until(self, copies: int) -> None:
        while self.copies < copies:
            time.sleep(0.01)


def test_a_copy_runs_beside_the_ranks_and_the_last_one_is_awaited(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path)
    mirror.local.look()
    mirror.commit(1)
    (tmp_path / "slow").touch()
    mirror.local.look()
    mirror.until(1)
    # Training goes on and commits more; no second copy starts beside the first.
    mirror.commit(2)
    mirror.local.look()
    assert mirror.copies == 1
    (tmp_path / "slow").unlink()
    mirror.local.finish()
    assert mirror.copies == 2
    mirror.local.finish()
    assert mirror.copies == 2
    assert mirror.said == []


def test_a_failed_copy_warns_and_is_tried_again_at_the_next_checkpoint(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path)
    (tmp_path / "broken").touch()
    mirror.commit(1)
    while not mirror.said:
        mirror.local.look()
        time.sleep(0.01)
    mirror.local.look()
    assert mirror.copies == 1
    assert "the mirror failed" in mirror.said[0]
    (tmp_path / "broken").unlink()
    mirror.commit(2)
    mirror.local.look()
    mirror.local.finish()
    assert (mirror.copies, len(mirror.said)) == (2, 1)


def test_a_stop_ends_the_copy_and_starts_no_other(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path)
    (tmp_path / "slow").touch()
    mirror.commit(1)
    mirror.local.look()
    mirror.until(1)
    mirror.local.stop()
    mirror.commit(2)
    mirror.local.finish()
    assert mirror.copies == 1
    assert mirror.said == []
