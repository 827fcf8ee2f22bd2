"""What a kill costs: calls in flight, and no more; a stop costs nothing."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpo_trainer.judging import by_scores
from tests.judgeserver import JudgeServer, serving
from tests.tied import popen
from tests.unit.trainer.judging.endpoint.asking import quality, questions

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[5]
COUNT = 40


def begin(server: JudgeServer, root: Path) -> "subprocess.Popen[str]":
    child = popen(
        [
            sys.executable,
            "-m",
            "tests.unit.trainer.judging.endpoint.judging_process",
            server.url,
            str(root),
            str(COUNT),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    return child


def after(server: JudgeServer, calls: int) -> None:
    """Wait until the server has had so many calls."""
    while server.calls < calls:
        time.sleep(0.002)


def test_a_kill_repeats_calls_in_flight_and_a_stop_none(tmp_path: Path) -> None:
    draw = random.Random(7)
    with serving(quality, latency=0.01) as server:
        for kill in range(2):
            child = begin(server, tmp_path)
            after(server, server.calls + draw.randint(5, 25))
            child.kill()
            child.communicate()
            repeated = sum(count - 1 for count in server.requests.values())
            assert repeated <= 4 * kill
        before = server.requests.copy()
        child = begin(server, tmp_path)
        after(server, server.calls + 10)
        child.send_signal(signal.SIGTERM)
        child.communicate()
        assert child.returncode == 143
        child = begin(server, tmp_path)
        said = child.communicate()[0]
        assert child.returncode == 0
        # All that was not on its way when a kill came was asked once, before and after the stop together.
        twice = {key: count for key, count in server.requests.items() if count > 1}
        assert sum(count - 1 for count in twice.values()) <= 4 * 2
        assert twice.keys() <= before.keys()
        calls = server.calls
        again = begin(server, tmp_path).communicate()[0]
        assert server.calls == calls
    right = [by_scores(one, map(quality, one.answers)) for one in questions(COUNT, answers=3)]
    assert json.loads(said) == json.loads(again) == [[one.best, one.worst] for one in right]
    # What the file says is what the server saw.
    text = (tmp_path / "judge" / "journal.jsonl").read_text()
    assert sum('"call"' in line for line in text.splitlines()) >= server.calls
