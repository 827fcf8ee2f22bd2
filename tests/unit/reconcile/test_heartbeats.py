"""Signs of life of the ranks: how silence is read from real sockets, and when it means a hang."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.planning.hangs import SILENT_SECONDS, hang
from dpo_operator.planning.objects import ChildPod
from dpo_operator.planning.progress import progress_status
from dpo_operator.reconcile.heartbeats import LONGEST_WAIT, OTHERS, Heartbeats
from dpo_operator.reconcile.progress_reader import ProgressReader, Silence
from tests import tied
from tests.unit.planning.build import NOON, a_child, a_job, a_pod, a_reading, a_status, a_view, ended

pytestmark = pytest.mark.unit

SERVER = """
import sys, time
from dpo_operator.api.reports import Progress
from dpo_trainer.telemetry.prometheus import TrainerMetrics
from dpo_trainer.telemetry.server import TelemetryServer
body = Progress(phase="train", attempt=1, step=7).model_dump_json()
server = TelemetryServer(TrainerMetrics(rank_zero=True).registry, lambda: body, port=0, address="127.0.0.1")
print(server.port, flush=True)
time.sleep(600)
"""


def read(port: int, times: int = 1) -> list[object]:
    """What the operator's client makes of a loopback port."""

    async def ask() -> list[object]:
        reader = ProgressReader(patience=10)
        try:
            return [await reader.read("127.0.0.1", port) for _ in range(times)]
        finally:
            await reader.close()

    return asyncio.run(ask())


@pytest.fixture
def trainer() -> Iterator[tuple[int, int]]:
    """Process id and port of a trainer's HTTP server."""
    process = tied.popen(
        [sys.executable, "-c", textwrap.dedent(SERVER)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stdout is not None
    yield process.pid, int(process.stdout.readline())
    process.kill()
    process.wait()


@pytest.mark.fault(34)
def test_a_stopped_process_is_told_from_one_that_answers(trainer: tuple[int, int]):
    pid, port = trainer
    (answer,) = read(port)
    assert answer.step == 7
    os.kill(pid, signal.SIGSTOP)
    # Its server is asked more often than a small queue of connections holds.
    assert read(port, 2) == [Silence.HUNG] * 2
    os.kill(pid, signal.SIGCONT)
    assert read(port)[0].step == 7


def test_nobody_listens():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert read(port) == [Silence.NOT_A_TRAINER]


def test_packets_that_are_dropped_are_no_evidence():
    with socket.socket() as server, socket.socket() as first:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        # The queue is full, so the kernel drops what comes next, as a NetworkPolicy would.
        first.connect(server.getsockname())
        assert read(server.getsockname()[1]) == [Silence.UNREACHABLE]


@pytest.mark.parametrize("said", [b"nonsense\r\n\r\n", b"HTTP/1.1 404 No\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n{}", b""])
def test_what_is_no_trainer_is_strange(said: bytes):
    async def ask() -> object:
        async def answer(incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter) -> None:
            await incoming.readline()
            outgoing.write(said)
            outgoing.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        reader = ProgressReader()
        try:
            return await reader.read("127.0.0.1", server.sockets[0].getsockname()[1])
        finally:
            await reader.close()
            server.close()

    assert asyncio.run(ask()) is Silence.NOT_A_TRAINER


ENDLESS = {
    "interim responses": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "headers": (b"HTTP/1.0 200 OK\r\n", b"X-More: 1\r\n"),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-More: 1\r\n"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", b" " * 64),
    "status line": (b"HTTP/1.1 200 ", b"O" * 64),
}


@pytest.mark.parametrize(("kind", "pause"), [*((kind, 0.0) for kind in ENDLESS), ("headers", 0.02)])
def test_an_endless_answer_is_cut_off(kind: str, pause: float):
    """By bytes or by time, over the whole connection; and no pass waits for it."""
    began, again = ENDLESS[kind]
    sent: list[int] = []

    async def ask() -> tuple[object, object]:
        async def answer(incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter) -> None:
            outgoing.write(began)
            sent.append(0)
            with contextlib.suppress(OSError):
                while True:
                    outgoing.write(again)
                    await outgoing.drain()
                    sent[-1] += len(again)
                    await asyncio.sleep(pause)

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        hasty, patient = ProgressReader(patience=0), ProgressReader(patience=30)
        try:
            first = await hasty.read("127.0.0.1", port)
            return first, await patient.read("127.0.0.1", port)
        finally:
            await hasty.close()
            await patient.close()
            server.close()

    first, last = asyncio.run(ask())
    assert first is Silence.SLOW
    assert last in (Silence.NOT_A_TRAINER, Silence.HUNG)
    # The kernel's buffers take some, too.
    assert max(sent) < 16 * 2**20


def test_a_slow_answer_is_there_at_the_next_read(trainer: tuple[int, int]):
    _, port = trainer

    async def ask() -> list[object]:
        reader = ProgressReader(patience=0)
        first = await reader.read("127.0.0.1", port)
        await asyncio.sleep(1.5)
        answers = [first, await reader.read("127.0.0.1", port)]
        await reader.close()
        return answers

    first, second = asyncio.run(ask())
    assert first is Silence.SLOW
    assert second.step == 7


class Cluster:
    """Pods of one attempt whose answers the test sets by node rank, and a clock that it sets, seconds."""

    def __init__(self, pods: int = 2, **fields: object) -> None:
        self.now = 1000.0
        self.answers: dict[int, object] = {}
        self.asked: list[int] = []
        self.job = a_job(nodes=pods)
        self.status = a_status(**fields)
        self.seen = a_view(a_child(), *(a_pod(index) for index in range(pods)))
        self.heartbeats = Heartbeats(clock=lambda: self.now)

    async def read(self, ip: str, port: int) -> object:
        index = int(ip.rpartition(".")[2]) - 1
        self.asked.append(index)
        return self.answers[index]

    def look(self, after: float = 0.0, **answers: object):  # type: ignore[no-untyped-def]
        """What is seen so many seconds later. answers: of pods, r0=…"""
        self.now += after
        self.answers |= {int(name[1:]): answer for name, answer in answers.items()}
        self.asked.clear()
        return asyncio.run(self.heartbeats.observe(self, self.job, self.status, self.seen))  # type: ignore[arg-type]


HUNG, NOT_A_TRAINER, UNREACHABLE = Silence.HUNG, Silence.NOT_A_TRAINER, Silence.UNREACHABLE


def test_stall_is_the_time_since_the_last_change():
    cluster = Cluster()
    assert cluster.look(r0=a_reading(1)).stalled_seconds == 0
    assert cluster.look(10).stalled_seconds == 10
    assert cluster.look(r0=a_reading(2)).stalled_seconds == 0
    assert cluster.look(10).stalled_seconds == 10
    # Work before the first step has no number but a time.
    assert cluster.look(r0=a_reading(2, last_step_at=1.0)).stalled_seconds == 0
    assert cluster.asked == [0]


@pytest.mark.fault(34)
def test_stopped_rank_0_is_noticed_by_the_other_ranks_that_wait_for_it():
    cluster = Cluster()
    cluster.look(r0=a_reading(5), r1=a_reading(5, last_step_at=3.0))
    seen = cluster.look(5, r0=HUNG)
    # The other pod's times are its own: hearing of them for the first time is no progress.
    assert (seen.stalled_seconds, seen.hung, seen.progress.step) == (5, (0,), 5)
    assert cluster.look(295).stalled_seconds == 300


@pytest.mark.fault(34)
@pytest.mark.parametrize("later", [HUNG, UNREACHABLE])
def test_all_ranks_stopped_before_they_ever_answered(later: Silence):
    cluster = Cluster()
    assert cluster.look(r0=NOT_A_TRAINER, r1=NOT_A_TRAINER).stalled_seconds is None
    assert cluster.look(r0=HUNG, r1=HUNG).stalled_seconds == 0
    # The kernel takes so many connections and no more; the process is as stopped as before.
    seen = cluster.look(20, r0=later, r1=later)
    assert (seen.stalled_seconds, seen.hung) == (20, (0, 1))


@pytest.mark.fault(34)
def test_hang_before_the_first_step():
    cluster = Cluster()
    cluster.look(r0=a_reading(0, activity="loading the model"), r1=a_reading(0, activity="loading the model"))
    assert cluster.look(50, r0=a_reading(0, activity="reference log-probs")).stalled_seconds == 0
    assert cluster.look(60).stalled_seconds == 60


def test_rank_0_that_waits_for_a_slower_rank_does_not_hang():
    """It has written its part of a checkpoint, and another rank is still at it."""
    cluster = Cluster(pods=6)
    waiting = a_reading(5, last_step_at=1.0)
    cluster.look(r0=waiting, **{f"r{i}": waiting for i in range(1, 6)})
    assert cluster.asked == [0]
    assert cluster.look(29).stalled_seconds == 29
    assert cluster.asked == [0]
    asked, stalled = set(), []
    for second in range(30, 90, 3):
        stalled.append(cluster.look(3, r4=a_reading(5, last_step_at=float(second))).stalled_seconds)
        assert len(cluster.asked) <= 1 + OTHERS
        asked |= set(cluster.asked)
    assert asked == set(range(6))
    assert max(stalled) < 50
    # And then nobody gets any further.
    assert [cluster.look(60).stalled_seconds for _ in range(10)][-1] >= 400


@pytest.mark.fault(37)
def test_rank_0_cut_off_with_the_gang_waiting_for_it_is_a_hang():
    cluster = Cluster()
    cluster.look(r0=a_reading(5), r1=a_reading(5))
    assert cluster.look(20, r0=UNREACHABLE).stalled_seconds == 20


@pytest.mark.fault(35)
def test_rank_0_silent_while_others_go_on_is_a_warning_and_no_stall():
    cluster = Cluster()
    cluster.look(r0=a_reading(1), r1=a_reading(1))
    said = []
    for step in range(2, 60):
        seen = cluster.look(3, r0=UNREACHABLE, r1=a_reading(step))
        assert (seen.stalled_seconds, seen.progress.step) == (0, step)
        said += cluster.heartbeats.announce()
    (event,) = said
    assert (event.type, event.reason) == ("Warning", c.HEARTBEAT_SILENT)
    assert (
        "Rank 0 could not be reached for 30 s: pod pairs-train-1-0 on node gpu-0. Other ranks make progress (step"
        in event.message
    )
    # After an answer, the next silence is news again.
    cluster.look(LONGEST_WAIT, r0=a_reading(60))
    assert cluster.asked == [0, 1]
    cluster.look(3, r0=UNREACHABLE, r1=a_reading(61))
    cluster.look(SILENT_SECONDS, r1=a_reading(62))
    assert cluster.heartbeats.has_events


@pytest.mark.fault(35)
def test_pods_that_can_not_be_reached_are_never_killed_for_that():
    cluster = Cluster()
    cluster.look(r0=a_reading(1), r1=a_reading(1))
    said = []
    for _ in range(40):
        assert cluster.look(30, r0=UNREACHABLE, r1=UNREACHABLE).stalled_seconds is None
        said += cluster.heartbeats.announce()
    (event,) = said
    assert "a hang could not be detected" in event.message
    # Once they can be reached, what had not changed meanwhile counts.
    assert cluster.look(30, r0=a_reading(1)).stalled_seconds == 41 * 30


def test_a_rank_that_no_longer_listens_counts_only_when_it_answered_before():
    cluster = Cluster(1)
    assert cluster.look(r0=NOT_A_TRAINER).stalled_seconds is None
    assert cluster.look(1000).stalled_seconds is None
    assert cluster.look(r0=a_reading(1)).stalled_seconds == 0
    assert cluster.look(10, r0=NOT_A_TRAINER).stalled_seconds == 10


def test_a_restarted_operator_reads_from_the_status_that_rank_0_answered():
    cluster = Cluster(1, progress=progress_status(a_reading(7), NOON))
    assert cluster.look(r0=NOT_A_TRAINER).stalled_seconds == 0
    assert cluster.look(300).stalled_seconds == 300


@pytest.mark.parametrize("phase", ["prepare", "export"])
def test_a_phase_without_steps_lives_as_long_as_it_answers(phase: str):
    cluster = Cluster(1, phase=phase)
    cluster.seen = a_view(a_child(phase), a_pod(0, phase))
    quiet = a_reading(0, phase=phase, activity="fetching the model's files")
    assert cluster.look(r0=quiet).stalled_seconds == 0
    assert cluster.look(3600).stalled_seconds == 0
    # One answer that is late, after hours of a quiet download, is no hang of hours.
    seen = cluster.look(5, r0=HUNG)
    assert (seen.stalled_seconds, seen.hung) == (5, (0,))
    assert cluster.look(1800).stalled_seconds == 1805


class Generators(Cluster):
    """Pods of a generate phase."""

    def __init__(self, pods: int) -> None:
        super().__init__(pods, phase="generate")
        self.all = tuple(a_pod(index, "generate") for index in range(pods))
        self.show(*self.all)

    def show(self, *pods: ChildPod) -> None:
        self.seen = a_view(a_child("generate"), *pods)


ANSWERING = a_reading(0, phase="generate")


def test_a_generator_that_hangs_is_found_beside_ones_that_answer():
    cluster = Generators(3)
    cluster.look(r0=ANSWERING, r1=ANSWERING, r2=ANSWERING)
    seen = cluster.look(5, r2=HUNG)
    assert (seen.stalled_seconds, seen.hung) == (5, (2,))
    seen = cluster.look(1800)
    assert (seen.stalled_seconds, seen.hung) == (1805, (2,))
    assert hang(cluster.status, seen, cluster.seen.pods, 1800) is not None
    seen = cluster.look(5, r2=ANSWERING)
    assert (seen.stalled_seconds, seen.hung) == (0, ())


@pytest.mark.parametrize("others", ["ended", "not placed"])
def test_a_generator_is_watched_while_others_do_not_run(others: str):
    cluster = Generators(2)
    gone = replace(cluster.all[0], pod_phase="Succeeded") if others == "ended" else None
    cluster.show(*([gone] if gone else []), cluster.all[1])
    cluster.look(r1=ANSWERING)
    seen = cluster.look(1800, r1=HUNG)
    assert (seen.stalled_seconds, seen.hung) == (1800, (1,))


def test_each_of_many_generators_is_asked_in_turn():
    cluster = Generators(10)
    asked: set[int] = set()
    cluster.answers |= dict.fromkeys(range(10), ANSWERING)
    for _ in range(5):
        cluster.look(5)
        assert len(cluster.asked) == 1 + OTHERS
        asked |= {*cluster.asked}
    assert asked == {*range(10)}


def test_one_late_answer_of_many_generators_is_no_long_silence():
    cluster = Generators(10)
    cluster.answers |= dict.fromkeys(range(10), ANSWERING)
    cluster.look(5)
    late = next(index for index in range(9, 0, -1) if index not in cluster.asked)
    for _ in range(9):
        cluster.answers |= dict.fromkeys(range(10), ANSWERING) | {late: HUNG}
        seen = cluster.look(5)
        if late in cluster.asked:
            break
    assert (seen.stalled_seconds, seen.hung) == (0, (late,))
    # It is asked each time from now on.
    assert cluster.look(5).stalled_seconds == 5
    assert late in cluster.asked
    cluster.answers[late] = ANSWERING
    assert cluster.look(5).hung == ()


def test_new_attempt_and_a_missing_pod_start_the_clock_anew():
    cluster = Cluster()
    cluster.look(r0=a_reading(1), r1=a_reading(1))
    whole = cluster.seen
    cluster.seen = replace(whole, pods=whole.pods[:1])
    assert cluster.look(100).stalled_seconds is None
    cluster.seen = whole
    assert cluster.look(100).stalled_seconds == 0
    cluster.status, cluster.seen = (
        a_status(attempt=2),
        a_view(a_child(attempt=2), a_pod(attempt=2), a_pod(1, attempt=2)),
    )
    # A process of the attempt before that still answers says nothing of this one.
    assert cluster.look(100, r0=a_reading(1), r1=NOT_A_TRAINER).stalled_seconds is None
    assert cluster.look(r0=a_reading(1, attempt=2)).stalled_seconds == 0


def test_few_pods_of_a_large_gang_are_asked():
    cluster = Cluster(64)
    cluster.look(**{f"r{index}": HUNG for index in range(64)})
    assert cluster.asked == list(range(1 + OTHERS))


@pytest.mark.fault(35)
def test_pods_that_can_not_be_reached_are_asked_less_and_less_often():
    cluster = Cluster()
    times = []
    for _ in range(200):
        cluster.look(1, r0=UNREACHABLE, r1=UNREACHABLE)
        times += [cluster.now] if cluster.asked else []
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert gaps == sorted(gaps)
    assert (gaps[0], gaps[-1]) == (3, LONGEST_WAIT)
    # Once it answers, it is asked every time.
    cluster.look(LONGEST_WAIT, r0=a_reading(1))
    cluster.look(1)
    assert cluster.asked == [0]


def test_a_process_that_hangs_is_asked_every_time():
    cluster = Cluster(1)
    cluster.look(r0=HUNG)
    for _ in range(10):
        cluster.look(1, r0=UNREACHABLE)
        assert cluster.asked == [0]


@pytest.mark.parametrize(("code", "asked"), [(137, []), (0, [0])])
def test_nobody_is_asked_for_an_attempt_that_failed(code: int, asked: list[int]):
    cluster = Cluster()
    cluster.seen = a_view(a_child(), a_pod(), ended(1, code))
    cluster.look(r0=a_reading(1))
    assert cluster.asked == asked


def test_prepare_warns_of_nothing():
    cluster = Cluster(1, phase="prepare")
    cluster.seen = a_view(a_child("prepare"), a_pod(0, "prepare"))
    cluster.look(r0=UNREACHABLE)
    cluster.look(1000)
    assert not cluster.heartbeats.has_events
