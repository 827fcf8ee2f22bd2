"""Two operators and one Lease: row 11 of the fault matrix, and what a Lease is good for."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.apiserver.faults import NAMESPACE, Stage, behind_a_proxy, stage
from tests.apiserver.hands import wait_until
from tests.apiserver.operator_process import OperatorProcess
from tests.apiserver.proxy import Proxy
from tests.apiserver.scripted import kubelets

LEASE_SECONDS = 4


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage("leaders", tmp_path_factory.mktemp("leaders")) as made:
        yield made


Pair = list[tuple[Proxy, OperatorProcess]]


@pytest.fixture
def two(theatre: Stage, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A leader, then a standby, each behind a proxy of its own."""
    lease = f"lease-{abs(hash(request.node.name))}"
    with ExitStack() as stack:
        made = []
        for pod in ("first", "second"):
            settings = {"POD_NAMESPACE": NAMESPACE, "POD_NAME": pod, "DPO_LEASE_NAME": lease}
            settings["DPO_LEASE_SECONDS"] = str(LEASE_SECONDS)
            Path(theatre.folder / pod).mkdir(exist_ok=True)
            made.append(stack.enter_context(behind_a_proxy(theatre, pod, **settings)))
            if pod == "first":
                wait_until("leader", lambda: leads(made[0][1]))
        assert made[1][1].healthy
        assert not leads(made[1][1])
        yield made


def leads(operator: OperatorProcess) -> bool:
    return "dpojob_operator_leader 1.0" in operator.metrics()


@pytest.mark.campaign
def test_standby_writes_nothing_and_an_orderly_end_hands_over_at_once(theatre: Stage, two: Pair) -> None:
    (first, leader), (second, standby) = two
    with kubelets(theatre.plane, NAMESPACE) as playing:
        theatre.life("handed", playing)
        theatre.reaches("handed", "train", 1)
        assert first.writes()
        assert second.writes() == []
        began = time.monotonic()
        assert leader.stop() == 0
        wait_until("successor", lambda: leads(standby))
        assert time.monotonic() - began < 10
        theatre.ends_calmly("handed")
        assert not playing.violations


@pytest.mark.campaign
def test_killed_leader_is_replaced(theatre: Stage, two: Pair) -> None:
    (_, leader), (_, standby) = two
    with kubelets(theatre.plane, NAMESPACE) as playing:
        theatre.life("replaced", playing)
        theatre.reaches("replaced", "train", 1)
        began = time.monotonic()
        leader.kill()
        wait_until("successor", lambda: leads(standby))
        assert time.monotonic() - began < LEASE_SECONDS + 3
        theatre.ends_calmly("replaced")
        assert not playing.violations


def pause_and_resume(theatre: Stage, two: Pair, name: str, seconds: float) -> None:
    (first, leader), (_, standby) = two
    with kubelets(theatre.plane, NAMESPACE) as playing:
        for number in range(3):
            theatre.life(f"{name}-{number}", playing)
        theatre.reaches(f"{name}-0", "prepare", 1)
        # In the middle of its work, wherever that is.
        leader.send(signal.SIGSTOP)
        since = len(first.calls)
        wait_until("successor", lambda: leads(standby), 30)
        time.sleep(max(0.0, seconds - LEASE_SECONDS))
        taken = time.monotonic()
        leader.send(signal.SIGCONT)
        assert leader.exit_status(30) == 1
        for number in range(3):
            theatre.ends_calmly(f"{name}-{number}", 120)
        assert not playing.violations
    late = [c for c in first.writes(since) if c.at > taken]
    assert late == []


@pytest.mark.campaign
@pytest.mark.fault(11)
def test_paused_leader_writes_nothing_after_its_time(theatre: Stage, two: Pair) -> None:
    pause_and_resume(theatre, two, "paused", 10)


@pytest.mark.campaign
@pytest.mark.fault(11)
def test_leader_paused_for_90_seconds_writes_nothing_after(theatre: Stage, two: Pair) -> None:
    pause_and_resume(theatre, two, "long-paused", 90)


@pytest.mark.campaign
@pytest.mark.fault(2, 11)
def test_leader_goes_on_after_an_outage_that_nobody_used(theatre: Stage, two: Pair) -> None:
    (_, leader), (_, standby) = two
    with kubelets(theatre.plane, NAMESPACE) as playing:
        theatre.life("outage", playing)
        theatre.reaches("outage", "prepare", 1)
        theatre.kill("kube-apiserver")
        time.sleep(LEASE_SECONDS + 2)
        theatre.start_apiserver()
        theatre.ends_calmly("outage", 120)
        assert not playing.violations
    # One of the two leads, and a process that lost the Lease is gone.
    alive = [operator for operator in (leader, standby) if operator._process and operator._process.poll() is None]
    wait_until("one leader", lambda: sum(leads(operator) for operator in alive) == 1)
