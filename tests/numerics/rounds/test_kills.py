"""SIGKILL at random instants of generate and of judge: the pairs of an undisturbed run, nothing made again, few calls repeated.

`make test-kills` runs it and prints its figures. Where a kill falls is drawn from a seed that is printed; what falls together with it is the machine's.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.rounds.units import load_arrays
from dpo_trainer.runtime.workdir import WorkDir
from tests.judgeserver import JudgeServer, distinct_words, serving
from tests.numerics.phases import KIND, SAD, Job, a_job
from tests.numerics.ranks import RankFailed, on_ranks

pytestmark = [pytest.mark.numerics, pytest.mark.exhaustive]

KILLS, STOPS, SEED = 50, 10, 20_260
CONCURRENCY = 4
LATENCY = 0.01


@pytest.fixture(scope="module")
def server() -> Iterator[JudgeServer]:
    with serving(distinct_words(set(KIND), set(SAD)), latency=LATENCY) as judge:
        yield judge


@pytest.fixture(scope="module")
def answered(shared: Path, server: JudgeServer, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job whose first round is answered and not judged."""
    root = tmp_path_factory.mktemp("answered")
    endpoint = {"url": server.url, "model": "judge", "concurrency": CONCURRENCY, "timeoutSeconds": 10}
    wanted = {
        "judge": {"type": "endpoint", "endpoint": endpoint}, "promptsPerRound": 16, "rounds": 1, "winRate": {"prompts": 8},
        "generation": {"samplesPerPrompt": 4, "maxNewTokens": 48, "unitPrompts": 2},
    }  # fmt: skip
    job = Job(root / "job", a_job(shared, root, **wanted))
    job.run("prepare")
    job.run("generate", 1)
    return job


def test_generators_killed_at_any_instant(answered: Job, tmp_path: Path):
    draw, leg, undisturbed = random.Random(SEED), WorkDir(tmp_path / "job" / "work").round(1), _leg(answered)
    job = answered.copied(tmp_path / "job")
    folders = ("generated", "compared")
    right = {folder: _arrays(getattr(undisturbed, folder)) for folder in folders}
    whole = _seconds(lambda: _emptied(leg.generated, leg.compared), lambda: on_ranks(1, _generate, str(job.file), str(job.work), None))  # fmt: skip
    kills, lives = 0, 0
    while kills < KILLS:
        _emptied(leg.generated, leg.compared)
        lives, kept, done = lives + 1, {}, False
        while not done and kills < KILLS:
            # Mostly within the next units, so that a life has many kills.
            done = not _killed(_generate, job, draw.uniform(0, whole * draw.choice((0.3, 1.0))))
            kills += not done
            now = _times(leg.generated) | _times(leg.compared)
            assert kept.items() <= now.items(), f"a unit was made again after kill {kills} (seed {SEED})"
            kept = now
    on_ranks(1, _generate, str(job.file), str(job.work), None)
    assert kept.items() <= (_times(leg.generated) | _times(leg.compared)).items()
    assert {folder: _arrays(getattr(leg, folder)) for folder in folders} == right
    print(f"\ngenerate: seed {SEED}, {kills} kills in {lives} runs of {whole:.1f} s; none made again, all alike")


def test_judges_killed_and_stopped_at_any_instant(answered: Job, server: JudgeServer, tmp_path: Path):
    undisturbed = answered.copied(tmp_path / "undisturbed")
    whole = _seconds(lambda: None, lambda: on_ranks(1, _judge, str(undisturbed.file), str(undisturbed.work), None))
    right, calls = _pairs(_leg(undisturbed)), server.calls
    draw, most, lives, kills, stops, repeats = random.Random(SEED + 1), 0, 0, 0, 0, 0
    while kills < KILLS or stops < STOPS:
        server.requests.clear()
        lives, life, done = lives + 1, 0, False
        job = answered.copied(tmp_path / f"life-{lives}")
        leg, kept = _leg(job), dict[Path, int]()
        while not done and life < 20:
            number = signal.SIGKILL if kills < KILLS and (stops >= STOPS or draw.random() < 0.8) else signal.SIGTERM
            before = _repeated(server)
            done = not _killed(_judge, job, draw.uniform(0, whole * draw.choice((0.3, 1.0))), number)
            now = _repeated(server) - before
            # What one process repeats is what the one before it left in flight.
            assert now <= CONCURRENCY * (life > 0), f"{now} calls repeated at kill {kills} (seed {SEED + 1})"
            most, repeats, life = max(most, now), repeats + now, life + (not done)
            kills += not done and number == signal.SIGKILL
            stops += not done and number == signal.SIGTERM
            times = _times(leg.judged)
            assert kept.items() <= times.items(), f"a unit was judged again after kill {kills}"
            kept = times
        on_ranks(1, _judge, str(job.file), str(job.work), None)
        assert server.calls - _repeated(server) == calls
        assert _repeated(server) <= CONCURRENCY * life
        assert _pairs(leg) == right
        before = server.calls
        _emptied(leg.judged)
        on_ranks(1, _judge, str(job.file), str(job.work), None)
        assert server.calls == before, "a second run with the cache called the server"
        assert _pairs(leg) == right
    print(
        f"\njudge: seed {SEED + 1}, {kills} kills and {stops} stops in {lives} runs of {whole:.1f} s and {calls} calls; {repeats} calls repeated, at most "
        f"{most} of {CONCURRENCY} at one kill; none with the cache; all pairs alike"
    )


def test_stops_alone_repeat_no_call(answered: Job, server: JudgeServer, tmp_path: Path):
    draw, job = random.Random(SEED + 2), answered.copied(tmp_path / "job")
    server.requests.clear()
    stops = 0
    for _ in range(STOPS):
        stops += _killed(_judge, job, draw.uniform(0.1, 1.5), signal.SIGTERM)
    on_ranks(1, _judge, str(job.file), str(job.work), None)
    assert _repeated(server) == 0
    print(f"\njudge: seed {SEED + 2}, {stops} stops, {server.calls} calls, none repeated")


def _generate(job_file: str, work: str, end: tuple[float, int] | None) -> None:
    """Generate the first round as one generator. end: seconds until a signal to this process, and its number."""
    from dpo_trainer.rounds import generate
    from dpo_trainer.runtime.job import read_job
    from dpo_trainer.telemetry import Telemetry

    leg = WorkDir(Path(work)).round(1)
    _await(end)
    generate.run(read_job(Path(job_file)).spec, leg, Telemetry("generate", 1, leg), generate.Share(0, 1))


def _judge(job_file: str, work: str, end: tuple[float, int] | None) -> None:
    """Judge the first round. end: as for _generate."""
    from dpo_trainer.rounds import judge
    from dpo_trainer.runtime.job import read_job, stop_on_request
    from dpo_trainer.sources.access import Access
    from dpo_trainer.telemetry import Telemetry

    leg = WorkDir(Path(work)).round(1)
    stop = stop_on_request()
    _await(end)
    judge.run_phase(read_job(Path(job_file)).spec, leg, Telemetry("judge", 1, leg), Access(), stop)


def _await(end: tuple[float, int] | None) -> None:
    """Have a process of its own send a signal to this one, at an instant that this one does not choose."""
    victim = os.getpid()
    if end is not None and os.fork() == 0:
        time.sleep(end[0])
        if os.getppid() == victim:
            os.kill(victim, end[1])
        os._exit(0)


def _killed(run: Callable[..., None], job: Job, seconds: float, number: int = signal.SIGKILL) -> bool:
    """Run a phase until a signal after some seconds; whether it came before the end."""
    try:
        on_ranks(1, run, str(job.file), str(job.work), (seconds, int(number)))
    except RankFailed as failed:
        if failed.kind != ("EOFError" if number == signal.SIGKILL else "Stopped"):
            raise
        return True
    return False


def _seconds(before: Callable[[], None], run: Callable[[], Any]) -> float:
    before()
    began = time.monotonic()
    run()
    return time.monotonic() - began


def _leg(job: Job) -> WorkDir:
    return WorkDir(job.work).round(1)


def _emptied(*folders: Path) -> None:
    for folder in folders:
        for path in folder.iterdir():
            path.unlink()


def _times(folder: Path) -> dict[Path, int]:
    """When each committed unit was written."""
    kinds = ("unit-*.safetensors", "initial-*.safetensors", "unit-*.jsonl")
    return {path: path.stat().st_mtime_ns for kind in kinds for path in folder.glob(kind)}


def _arrays(folder: Path) -> dict[str, bytes]:
    from safetensors import safe_open

    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            key, names = file.metadata()["key"], sorted(file.keys())
        arrays = load_arrays(path, names, key)
        assert arrays is not None
        found[path.name] = b"".join([key.encode(), *(arrays[name].tobytes() for name in names)])
    return found


def _pairs(leg: WorkDir) -> tuple[str, bytes]:
    return PairDataset.open(leg.train_data).digest, np.load(leg.generator_logps).tobytes()


def _repeated(server: JudgeServer) -> int:
    return server.calls - len(server.requests)
