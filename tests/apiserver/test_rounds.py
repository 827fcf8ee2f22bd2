"""Jobs of several trainings on a real API server: rounds with a generator that fails, an operator that restarts and a judge that ends them; a sweep."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api import names
from tests.apiserver.client import Requests
from tests.apiserver.hands import NAMESPACE, Hands, last_words, wait_until
from tests.apiserver.operator_process import OperatorProcess, running
from tests.cluster.rig.control_plane import ControlPlane

pytestmark = pytest.mark.apiserver

ENDPOINT = {
    "url": "http://judge.team.svc:8000/v1", "model": "judge", "apiKeySecretRef": {"name": "judge", "key": "api"},
    "allowTo": {"namespace": NAMESPACE, "podLabels": {"app": "judge"}, "port": 8000},
}  # fmt: skip
ROUNDS = {"rounds": 3, "judge": {"type": "endpoint", "endpoint": ENDPOINT}}


@pytest.fixture(scope="module")
def hands(control_plane: ControlPlane, dpojobs: Requests) -> Hands:
    control_plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    return Hands(dpojobs)


@pytest.fixture
def operator(hands: Hands, control_plane: ControlPlane, tmp_path: Path) -> Iterator[OperatorProcess]:
    with running(OperatorProcess(control_plane.kubeconfig, NAMESPACE, tmp_path / "operator.log")) as process:
        yield process


def checkpoint(attempt: int, step: int) -> dict[str, Any]:
    ref = {"step": step, "path": f"checkpoints/{step}", "digest": f"{attempt}" * 64, "attempt": attempt, "time": 1.0}
    return {"phase": "train", "attempt": attempt, "step": step, "max_steps": step, "checkpoint": ref}


def labels_of(hands: Hands, kind: str, phase: str) -> list[dict[str, str]]:
    found = [child["metadata"]["labels"] for child in hands.children(kind, "rounds")]
    return [labels for labels in found if labels.get(names.LABEL_PHASE) == phase]


def test_a_job_goes_through_its_rounds(hands: Hands, operator: OperatorProcess) -> None:
    hands.apply("rounds", iterative=ROUNDS, failurePolicy={"backoffSeconds": 1})
    hands.run_phase("rounds", "prepare", dataset={"train_pairs": 90, "eval_pairs": 10})

    # A generator is killed: the phase begins again, in the same round, and nothing of the first attempt is left.
    pods = hands.pods("rounds", "generate", 1, 2)
    for pod in pods:
        hands.start(pod)
    wait_until("generation", lambda: hands.status("rounds").get("state") == "Generating")
    hands.end(pods[1], 137, reason="OOMKilled")
    again = hands.pods("rounds", "generate", 2, 2)
    assert {pod["metadata"]["labels"][names.LABEL_ROUND] for pod in again} == {"1"}
    assert hands.status("rounds")["restartHistory"][-1]["reason"] == "OOMKilled"

    # The operator dies, and another one goes on with the same pods.
    operator.kill()
    for pod in again:
        hands.start(pod)
        hands.end(pod, 0, last_words(0, "generate", 2))
    operator.start()

    (judge,) = hands.pods("rounds", "judge", 1, 1)
    assert [v["secret"]["secretName"] for v in judge["spec"]["volumes"] if "secret" in v] == ["judge"]
    policy = hands.get("networkpolicies", "rounds-judge")
    assert policy is not None
    assert [rule["ports"][0]["port"] for rule in policy["spec"]["egress"]] == [53, 8000]
    closed = hands.get("networkpolicies", "rounds-generate")
    assert closed is not None
    assert closed["spec"].get("egress", []) == []
    assert set(closed["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    hands.run_phase("rounds", "judge", round={"round": 1, "prompts": 100, "pairs": 60, "judge_calls": 600})

    hands.run_phase("rounds", "train", progress=checkpoint(1, 20))
    hands.run_phase("rounds", "export", export_path="rounds/0001/export")

    # The second round: the judge says that there are too few pairs, and the first round's policy is the job's.
    hands.run_phase("rounds", "generate", 3)
    (second,) = hands.pods("rounds", "judge", 2, 1)
    assert hands.status("rounds")["round"] == 2
    # What the next training may start from is the last checkpoint of the round alone.
    assert [each["step"] for each in hands.status("rounds")["recordedCheckpoints"]] == [20]
    assert [labels[names.LABEL_ATTEMPT] for labels in labels_of(hands, "jobs", "generate")] == ["3"]
    assert second["metadata"]["labels"][names.LABEL_ROUND] == "2"
    before = {
        "round": 1,
        "prompts": 100,
        "pairs": 60,
        "judge_calls": 600,
        "win_rate_previous": 0.61,
        "win_rate_error": 0.03,
    }
    hands.run_phase(
        "rounds", "judge", 2, round={"round": 2, "prompts": 100, "pairs": 3, "ended": "Saturated"}, compared=before
    )

    (last,) = hands.pods("rounds", "export", 2, 1)
    assert names.LABEL_ROUND not in last["metadata"]["labels"]
    hands.run_phase("rounds", "export", 2, export_path="export")
    wait_until("end", lambda: hands.status("rounds").get("state") == "Complete")
    status = hands.status("rounds")
    assert [
        (each["round"], each["pairs"], each.get("winRatePrevious"), each.get("ended")) for each in status["rounds"]
    ] == [
        (1, 60, "0.61", ""),
        (2, 3, None, "Saturated"),
    ]
    assert status["attempts"] == {"prepare": 1, "generate": 3, "judge": 2, "train": 1, "export": 2}
    assert status["export"]["path"] == "export"
    assert "No further round is trained" in status["message"]
    told = hands.events("rounds")
    assert [each for each in told if each in ("Generated", "Judged", "Trained", "RoundTrained", "RoundsEnded")] == [
        "Generated", "Judged", "Trained", "RoundTrained", "Generated", "Judged", "RoundsEnded",
    ]  # fmt: skip


def leg(number: int, **figures: Any) -> dict[str, Any]:
    said = {"leg": number, "outcome": "Trained", "steps": 20, "step": 20, "loss": 0.5, "drift": 0.02, **figures}
    return {"progress": checkpoint(number, 20), "leg": said}


def test_a_sweep_trains_its_legs_and_exports_the_best(hands: Hands, operator: OperatorProcess) -> None:
    """Two legs of a gang; the first is unhealthy, the operator dies before the second, whose checkpoint alone the export may use."""
    hands.apply(
        "sweep",
        sweep={"beta": [0.1, 0.3, 0.5]},
        data={"train": {"source": "t"}, "evalFraction": 0.1},
        failurePolicy={"backoffSeconds": 1},
    )
    hands.run_phase("sweep", "prepare", dataset={"train_pairs": 90, "eval_pairs": 10})
    ill = {"outcome": "Unhealthy", "message": "It writes gibberish.", "findings": ["Gibberish"], "unhealthy": True}
    hands.run_phase("sweep", "train", **leg(1, accuracy=0.99, **ill))
    hands.run_phase("sweep", "train", 2, **leg(2, accuracy=0.8))
    operator.kill()
    operator.start()
    third = hands.pods("sweep", "train", 3, 2)
    assert {pod["metadata"]["labels"][names.LABEL_LEG] for pod in third} == {"3"}
    assert hands.status("sweep")["leg"] == 3
    # A pod is lost: the same leg begins again, with none of the other legs' checkpoints.
    for pod in third:
        hands.start(pod)
    hands.end(third[1], 137, reason="OOMKilled")
    again = hands.pods("sweep", "train", 4, 2)
    assert {pod["metadata"]["labels"][names.LABEL_LEG] for pod in again} == {"3"}
    assert json.loads(variable(again[0], names.ENV_RECORDED_CHECKPOINTS))["checkpoints"] == []
    last = leg(3, accuracy=0.7) | {"progress": checkpoint(4, 20)}
    hands.run_phase("sweep", "train", 4, **last)

    (export,) = hands.pods("sweep", "export", 1, 1)
    assert export["metadata"]["labels"][names.LABEL_LEG] == variable(export, names.ENV_LEG) == "2"
    usable = json.loads(variable(export, names.ENV_RECORDED_CHECKPOINTS))
    assert [(each["step"], each["attempt"]) for each in usable["checkpoints"]] == [(20, 2)]
    hands.run_phase("sweep", "export", export_path="export")
    wait_until("end", lambda: hands.status("sweep").get("state") == "Complete")
    status = hands.status("sweep")
    assert [(each["leg"], each["settings"], each["outcome"], each["chosen"]) for each in status["legs"]] == [
        (1, "beta 0.1", "Unhealthy", False), (2, "beta 0.3", "Trained", True), (3, "beta 0.5", "Trained", False)
    ]  # fmt: skip
    assert status["attempts"] == {"prepare": 1, "generate": 0, "judge": 0, "train": 4, "export": 1}
    assert "Leg 2 of 3 is exported, the best by eval_reward_accuracy: beta 0.3." in status["message"]
    told = hands.events("sweep")
    assert [each for each in told if each in ("LegUnhealthy", "LegTrained")] == [
        "LegUnhealthy",
        "LegTrained",
        "LegTrained",
    ]


def variable(pod: dict[str, Any], name: str) -> str:
    return next(str(each["value"]) for each in pod["spec"]["containers"][0]["env"] if each["name"] == name)
