"""Faults of the API between the operator and a real API server: rows 2 and 4 to 8 of the fault matrix.

Every job lives the same life, with one restart, and has to end like the one that met no fault.
"""

import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.apiserver.client import Requests
from tests.apiserver.faults import Stage, behind_a_proxy, duplicated, stage, writes_by_kind
from tests.apiserver.hands import Hands, wait_until
from tests.apiserver.operator_process import OperatorProcess
from tests.apiserver.proxy import GONE, Call, Proxy
from tests.apiserver.scripted import Kubelets, kubelets

pytestmark = pytest.mark.campaign


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage("faults", tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.fixture(scope="module")
def operated(theatre: Stage) -> Iterator[tuple[Proxy, OperatorProcess]]:
    with behind_a_proxy(theatre, "shared") as both:
        yield both


@pytest.fixture
def proxy(operated: tuple[Proxy, OperatorProcess]) -> Iterator[Proxy]:
    """The proxy without any fault, before and after the test."""
    proxy, operator = operated
    yield proxy
    proxy._faults.clear()
    proxy.edits.clear()
    proxy.replayed.clear()
    proxy.release()
    proxy.cut()
    assert operator.healthy


@pytest.fixture
def playing(theatre: Stage) -> Iterator[Kubelets]:
    with kubelets(theatre.plane, "fault-tests") as playing:
        yield playing
        assert not playing.violations
    # A gang that nobody plays for any more would keep the next test's from its turn.
    theatre.clear()


@pytest.mark.fault(2)
def test_restarted_api_server_touches_no_pod(theatre: Stage, proxy: Proxy, playing: Kubelets) -> None:
    playing.paused = True
    theatre.life("restarted", playing)
    playing.paused = False
    theatre.reaches("restarted", "train", 2)
    playing.paused = True
    before = {p["metadata"]["uid"] for p in theatre.hands().children("pods", "restarted")}
    theatre.kill("kube-apiserver")
    time.sleep(2)
    theatre.start_apiserver()
    time.sleep(3)
    assert {p["metadata"]["uid"] for p in theatre.hands().children("pods", "restarted")} == before
    playing.paused = False
    theatre.ends_calmly("restarted")


@pytest.mark.fault(4)
def test_deletion_that_no_watch_tells_of_is_healed(theatre: Stage, proxy: Proxy, playing: Kubelets) -> None:
    theatre.life("deaf", playing)
    theatre.reaches("deaf", "train", 1)
    playing.leave("deaf")
    proxy.edits["jobs"] = proxy.edits["pods"] = lambda event: [] if event["type"] == "DELETED" else [event]
    theatre.hands().delete("jobs", "deaf-train-1")
    # The watch is then told to begin anew; the list that follows knows nothing of what was deleted.
    proxy.edits["jobs"] = proxy.edits["pods"] = lambda event: [GONE]
    theatre.hands().apply("noise", training={"globalBatchSize": 2, "offload": "nvme"})
    began = time.monotonic()
    wait_until("next attempt", lambda: theatre.hands().status("deaf").get("attempts", {}).get("train") == 2, 30)
    assert time.monotonic() - began < 30
    proxy.edits.clear()
    status = theatre.hands().status("deaf")
    assert (status["restarts"], status["countedRestarts"]) == (1, 0)
    # What was made by then is the only gang.
    theatre.hands().pods("deaf", "train", 2, 2)


@pytest.mark.fault(5)
def test_repeated_and_reordered_events_cause_no_write_more(theatre: Stage, proxy: Proxy, playing: Kubelets) -> None:
    past: dict[str, list[dict[str, Any]]] = {}

    def echo(resource: str, event: dict[str, Any]) -> list[dict[str, Any]]:
        """An event twice, and after it all that came before, from the newest to the oldest."""
        old = past.setdefault(resource, [])
        if event["type"] == "BOOKMARK":
            return [event]
        old.append(event)
        return [*duplicated(event), *reversed(old[-10:])]

    for resource in ("dpojobs", "jobs", "pods"):
        proxy.edits[resource] = lambda event, resource=resource: echo(resource, event)
    proxy.cut()
    time.sleep(1)
    since = len(proxy.calls)
    theatre.life("echo", playing)
    theatre.ends_calmly("echo")
    # A rank whose peer was killed is deleted by us or by its Job's controller, whoever comes first.
    found, calm = writes_by_kind(own(proxy, since, "echo")), theatre.calm_writes.copy()
    assert found.pop("DELETE pods", 0) <= 2
    calm.pop("DELETE pods", None)
    assert found == calm
    time.sleep(3)
    quiet = len(proxy.calls)
    theatre.hands().patch("dpojobs", "echo", {"metadata": {"labels": {"touched": "yes"}}})
    time.sleep(3)
    assert own(proxy, quiet, "echo") == []


def own(proxy: Proxy, since: int, job: str) -> list[Call]:
    """Writes to a job's objects; a creation names none, and no other job lives meanwhile."""
    return [c for c in proxy.writes(since) if f"/{job}" in c.path or c.method == "POST"]


@pytest.mark.fault(6)
def test_old_lists_delete_nothing_of_a_new_job_of_the_name(theatre: Stage, proxy: Proxy, playing: Kubelets) -> None:
    theatre.life("reborn", playing, checkpoint={"volume": {"retention": "Delete"}})
    theatre.reaches("reborn", "train", 1)
    playing.leave("reborn")
    hands = theatre.hands()
    hands.patch("dpojobs", "reborn", {"spec": {"suspend": True}})
    # The operator now knows the old job as one whose pods have to go.
    wait_until("suspension", lambda: hands.condition("reborn", "Suspended")[0] == "True")
    proxy.replay("dpojobs", "jobs", "pods")
    hands.delete("dpojobs", "reborn")
    wait_until("deletion", lambda: hands.get("dpojobs", "reborn") is None and not hands.children("jobs", "reborn"))
    since = len(proxy.calls)
    new = hands.apply("reborn")
    time.sleep(4)
    assert not [c for c in proxy.calls[since:] if c.method == "DELETE" and c.status == 200 and "reborn" in c.path]
    proxy.replayed.clear()
    playing.play("reborn")
    theatre.ends_calmly("reborn")
    assert {o["uid"] for j in hands.children("jobs", "reborn") for o in j["metadata"]["ownerReferences"]} == {
        new["metadata"]["uid"]
    }


@pytest.mark.fault(7)
def test_every_write_is_carried_out_and_its_answer_lost(theatre: Stage, proxy: Proxy, playing: Kubelets) -> None:
    lost: set[tuple[str, str, int]] = set()

    def once(call: Call) -> bool:
        """The first of each kind of write, and each fifth of all: a job's status is written under one path."""
        if not call.writes:
            return False
        count = sum(1 for c in proxy.calls[since:] if (c.method, c.path) == (call.method, call.path))
        mark = (call.method, call.path, count // 5)
        if mark in lost:
            return False
        lost.add(mark)
        return True

    since = len(proxy.calls)
    proxy.fail(once, 0, times=1000)
    theatre.life("unheard", playing)
    theatre.ends_calmly("unheard", 120)
    assert len(lost) > 8


@pytest.mark.fault(7)
def test_object_of_another_owner_is_never_adopted(theatre: Stage, proxy: Proxy, playing: Kubelets) -> None:
    name, spec = "taken-prepare", {"podSelector": {"matchLabels": {"mine": "yes"}}, "policyTypes": ["Ingress"]}
    foreign = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec}
    hands = theatre.hands()
    assert hands.requests.send("POST", hands.path("networkpolicies"), foreign).accepted
    hands.apply("taken")
    wait_until("refusal", lambda: f"{name} exists" in hands.status("taken").get("message", ""))
    time.sleep(1)
    kept = hands.get("networkpolicies", name)
    assert kept is not None
    assert (kept["spec"], "ownerReferences" in kept["metadata"]) == (spec, False)
    assert hands.children("jobs", "taken") == []
    hands.delete("dpojobs", "taken")


@pytest.mark.fault(8)
@pytest.mark.parametrize("code", [409, 429, 500, 503])
def test_every_write_is_refused_once(code: int, theatre: Stage, proxy: Proxy, playing: Kubelets) -> None:
    refused: set[tuple[str, str]] = set()

    def once(call: Call) -> bool:
        mark = (call.method, call.path)
        if not call.writes or mark in refused:
            return False
        refused.add(mark)
        return True

    proxy.fail(once, code, times=1000, **({"Retry_After": "1"} if code == 429 else {}))
    name = f"refused-{code}"
    theatre.life(name, playing)
    theatre.ends_calmly(name, 120)
    # Status, events, three that pods mount, Jobs made and deleted.
    assert len(refused) >= 7


@pytest.mark.fault(8)
@pytest.mark.parametrize("code", [429, 500, 403])
def test_refused_watch_comes_back(code: int, theatre: Stage, proxy: Proxy, playing: Kubelets) -> None:
    fault = proxy.fail(lambda call: call.watch, code, times=6)

    def refused() -> bool:
        proxy.cut()  # again and again: a watch that was just let through may not be known yet
        return fault.happened == fault.times

    wait_until("refusals", refused, 30)

    def newest() -> dict[str, int]:
        return {call.resource: call.status for call in proxy.calls if call.watch}

    wait_until("all watches", lambda: newest() == {"dpojobs": 200, "jobs": 200, "pods": 200}, 30)
    theatre.life(f"watched-{code}", playing)
    theatre.ends_calmly(f"watched-{code}")


TEXT = "404 page not found"
EMPTY = '{"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []}'


@pytest.mark.fault(8)
@pytest.mark.parametrize(("code", "text"), [(404, TEXT), (404, ""), (200, EMPTY)], ids=["gateway", "status", "empty"])
def test_wrong_answers_to_every_kind_of_request(
    theatre: Stage, proxy: Proxy, playing: Kubelets, code: int, text: str
) -> None:
    """Each kind of request is answered wrongly twice, and rightly before and after."""
    told: Counter[tuple[str, str, bool]] = Counter()
    right: set[tuple[str, str, bool]] = set()
    last = [0.0]

    def fits(call: Call) -> bool:
        is_list = not call.writes and not call.named["name"]
        if call.watch or call.resource in ("leases", "events") or (code == 200 and not is_list):
            return False
        if is_list and "limit=" not in call.path:
            # The list of a watch; an error there ends the process.
            return False
        kind = (call.method, call.resource, is_list)
        wrong = told[kind] < 2 and (kind in right or call.writes) and call.at - last[0] > 0.2
        (right.discard if wrong else right.add)(kind)
        if wrong:
            told[kind], last[0] = told[kind] + 1, call.at
        return wrong

    name = f"wrong-{code}-{len(text)}"
    proxy.fail(fits, code, times=1000, text=text)
    theatre.life(name, playing)
    theatre.ends_calmly(name, 120)
    assert {("GET", "jobs", True), ("GET", "pods", True)} <= told.keys()
    if code == 404:
        assert {
            ("GET", "persistentvolumeclaims", False),
            ("GET", "dpojobs", False),
            ("POST", "jobs", False),
        } <= told.keys()


@pytest.mark.fault(8)
def test_error_in_a_watch_ends_the_process_rather_than_the_watch(theatre: Stage, playing: Kubelets) -> None:
    with behind_a_proxy(theatre, "watch-error") as (proxy, operator):
        broken = {"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "injected"}}
        proxy.edits["pods"] = lambda event: [broken]
        theatre.life("watch-error", playing)
        assert operator.exit_status(60) != 0
        proxy.edits.clear()
        operator.start()
        theatre.ends_calmly("watch-error")


@pytest.mark.fault(10)
def test_absent_controllers_clean_up_later(theatre: Stage, proxy: Proxy, playing: Kubelets) -> None:
    theatre.life("stuck", playing)
    theatre.reaches("stuck", "train", 1)
    controllers = theatre.process("kube-controller-manager")
    controllers.signal(signal.SIGSTOP)
    try:
        time.sleep(3)
        # The killed rank is known; nothing of the next attempt may exist while the old Job's pods do.
        assert not [j for j in theatre.hands().children("jobs", "stuck") if j["metadata"]["name"] == "stuck-export-1"]
    finally:
        controllers.signal(signal.SIGCONT)
    theatre.ends_calmly("stuck")


def test_namespace_that_is_forbidden_does_not_stop_the_others(theatre: Stage, playing: Kubelets) -> None:
    other = "other-tests"
    theatre.plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    theatre.plane.wait_for_service_account(other)
    namespaces = f"{other},fault-tests"
    with behind_a_proxy(theatre, "namespaces", WATCH_NAMESPACES=namespaces) as (proxy, operator):
        forbidden = proxy.fail(lambda call: f"/namespaces/{other}/" in call.path, 403, times=1_000_000)
        proxy.cut()
        # Long enough for kopf to have given up, had it a number of attempts.
        wait_until("refusals", lambda: forbidden.happened > 30, 60)
        theatre.life("allowed", playing)
        theatre.ends_calmly("allowed")
        assert operator.healthy
        assert "dpojob_operator_unreadable_namespaces 1.0" in operator.metrics()
        # The right comes back.
        forbidden.times = 0
        there = Hands(Requests(theatre.plane), other)
        there.apply("back")
        began = time.monotonic()
        there.pods("back", "prepare", 1, 1)
        assert time.monotonic() - began < 15
        wait_until("metric", lambda: "dpojob_operator_unreadable_namespaces 0.0" in operator.metrics())
