"""Tenants attack one another with all that the chart lets them do, on a real API server, with the operator under its own rights.

Success of an attacker is failure of the test. The attacks are in attacks_refused, attacks_played, attacks_running and
attacks_pods; a table of all of them is printed at the end.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from dpo_operator.api import names
from tests.apiserver.attacks_played import BEFORE, Played, always
from tests.apiserver.attacks_pods import FORGED, PLANTED, VICTIM, forged_won
from tests.apiserver.attacks_refused import REFUSED
from tests.apiserver.attacks_running import RUNNING, WITHOUT_POLICY
from tests.apiserver.hands import Hands, last_words, wait_until
from tests.apiserver.operator_process import running
from tests.apiserver.tenants import HONEST, LAB, SECRET, SHARED, VICTIMS, Arena, a_dpojob
from tests.cluster.rig import fixture

pytestmark = pytest.mark.apiserver

SETTLE_SECONDS = 60.0
# What succeeds when the administrator wants it so, and the value of the chart. All of them are in docs/security.md.
CHOICES = {
    "data without the right to it, without the policy": "admission.enabled=false",
    "token, without the policy": "admission.enabled=false",
    "pod with the UID of a Job": "admission.enabled=false",
}
# Judged at the end: the Job controller may delete this pod as one too many before the operator reads it.
UID_OF_A_JOB = Played("pod with the UID of a Job", "t3", FORGED.plant, always, forged_won)
# By attack: who, and what the attacker got.
OUTCOMES: dict[str, tuple[str, str]] = {}


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with fixture.control_plane("tenants") as plane:
        arena = Arena(plane, tmp_path_factory.mktemp("tenants"))
        arena.install()
        for job, user in (
            (a_dpojob(VICTIM, SHARED, nodes=2), HONEST),
            (a_dpojob("resized", SHARED, nodes=2), HONEST),
            (a_dpojob("doubled", SHARED, nodes=2), HONEST),
            (a_dpojob("evented", SHARED), HONEST),
            (a_dpojob("secretive", SHARED, model={"name": "org/model", "tokenSecretRef": {"name": SECRET}}), HONEST),
            (a_dpojob("far", VICTIMS), HONEST),
            (a_dpojob("own", LAB), "t1"),
        ):
            answer = arena.create(job, user)
            assert answer.accepted, answer.message
        yield arena


@pytest.fixture(scope="module")
def started(arena: Arena) -> Iterator[Arena]:
    """With the operator. What attackers planted before is there by now."""
    for attack in BEFORE:
        attack.act(arena)
    with running(arena.operator):
        yield arena


def judge(arena: Arena, attacks: Sequence[Played]) -> dict[str, str]:
    """Wait until the operator has answered all of them, and see who won. They share the wait."""
    end, open_ = time.monotonic() + SETTLE_SECONDS, list(attacks)
    while open_ := [attack for attack in open_ if not attack.settled(arena)]:
        assert time.monotonic() < end, f"no answer to {[a.id for a in open_]}: {arena.operator.log.read_text()[-4000:]}"
        time.sleep(0.2)
    found = {attack.id: (attack.tenant, attack.won(arena)) for attack in attacks}
    OUTCOMES.update(found)
    return {id_: got for id_, (_, got) in found.items() if got and id_ not in CHOICES}


def training(hands: Hands, name: str) -> None:
    hands.run_phase(name, "prepare")
    for pod in hands.pods(name, "train", 1, 2):
        hands.start(pod)
    wait_until("training", lambda: hands.status(name).get("state") == "Training")


def ranks_of(hands: Hands, phase: str, attempt: int, count: int) -> list[dict[str, Any]]:
    """The victim's own pods, which its Job made; empty until there are all."""
    job = names.child_job_name(VICTIM, phase, attempt)
    own = [p for p in hands.children("pods", VICTIM) if p["metadata"].get("generateName", "").startswith(f"{job}-")]
    return own if len(own) == count else []


def test_what_the_api_server_refuses(arena: Arena) -> None:
    found = {refused.id: (refused.tenant, refused.answer(arena)) for refused in REFUSED}
    assert len(found) == len(REFUSED)
    OUTCOMES.update(found)
    assert {id_: got for id_, (_, got) in found.items() if got} == {}


def test_what_is_planted_before_the_operator_looks(started: Arena) -> None:
    assert judge(started, BEFORE) == {}


def test_attacks_on_jobs_that_run(started: Arena) -> None:
    hands = started.hands(SHARED)
    training(hands, VICTIM)
    training(hands, "resized")
    training(hands, "doubled")
    for attack in RUNNING:
        attack.act(started)
    assert judge(started, RUNNING) == {}


def test_attacks_without_the_admission_policy(started: Arena) -> None:
    """The operator's own checks, and pods that look like ranks."""
    started.remove_admission()
    for attack in (*WITHOUT_POLICY, *PLANTED, UID_OF_A_JOB):
        attack.act(started)
    assert judge(started, WITHOUT_POLICY) == {}
    # The victim continues: one rank is killed, and the job ends as usual.
    hands = started.hands(SHARED)
    ranks = ranks_of(hands, "train", 1, 2)
    hands.end(ranks[1], 137)
    wait_until("restart", lambda: hands.status(VICTIM).get("restarts") == 1)
    for pod in ranks:
        hands.delete("pods", pod["metadata"]["name"], gracePeriodSeconds=0)
    for phase, attempt, count in (("train", 2, 2), ("export", 1, 1)):
        ranks = wait_until(f"pods of {phase}", lambda p=phase, a=attempt, n=count: ranks_of(hands, p, a, n))
        for pod in ranks:
            hands.start(pod)
        wait_until(phase, lambda: hands.condition(VICTIM, "Running")[0] == "True")
        for pod in ranks:
            hands.end(pod, 0, last_words(0, phase, attempt, export_path="export"))
    wait_until("the victim's end", lambda: hands.status(VICTIM).get("state") in ("Complete", "Failed"))
    assert judge(started, (*PLANTED, UID_OF_A_JOB)) == {}


def test_every_attack_was_made_and_none_succeeded(started: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    """The choices of the administrator succeed: where they don't, the list is out of date. A race decides the third."""
    with capsys.disabled():
        print()
        for id_, (tenant, got) in sorted(OUTCOMES.items(), key=lambda item: (item[1][0], item[0])):
            print(f"{tenant}  {id_:60} {CHOICES.get(id_, '') if got and id_ in CHOICES else got or 'blocked'}")
        won = {id_ for id_, (_, got) in OUTCOMES.items() if got}
        print(f"{len(OUTCOMES)} attacks, {len(won - set(CHOICES))} successes, {len(won & set(CHOICES))} by choice")
    assert set(OUTCOMES) == {a.id for a in (*REFUSED, *BEFORE, *RUNNING, *WITHOUT_POLICY, *PLANTED, UID_OF_A_JOB)}
    assert len(OUTCOMES) >= 60
    assert won | {UID_OF_A_JOB.id} == set(CHOICES)
    assert "Traceback" not in started.operator.log.read_text(errors="replace")
