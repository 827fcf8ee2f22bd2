"""Pods that generate and judge."""

import json
from typing import Any

import pytest

from dpo_operator.api import names
from dpo_operator.builders.config import job_file
from dpo_operator.builders.guards import build_push_policy
from dpo_operator.builders.job import build_child_job, takes_turns
from dpo_operator.builders.networks import CLOSED
from dpo_operator.builders.pod import TrainerImage
from dpo_operator.builders.shape import pod_count
from tests.unit.planning.build import a_job

pytestmark = pytest.mark.unit

ENDPOINT = {
    "url": "http://judge.team.svc:8000/v1",
    "model": "m",
    "apiKeySecretRef": {"name": "judge", "key": "api"},
    "timeoutSeconds": 300,
}
ASKS = {"judge": {"type": "endpoint", "endpoint": ENDPOINT}}
SCORES = {"judge": {"type": "rewardModel", "rewardModel": {"name": "org/judge", "gpus": 1}}}


def child(phase: names.Phase, **spec: Any) -> dict[str, Any]:
    job = a_job(**{"iterative": ASKS, "gpusPerNode": 2} | spec)
    return build_child_job(job, phase, 7, TrainerImage("trainer:1"), number=3)


def pod(phase: names.Phase, **spec: Any) -> dict[str, Any]:
    return dict(child(phase, **spec)["spec"]["template"]["spec"])


def variables(phase: names.Phase, **spec: Any) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in pod(phase, **spec)["containers"][0]["env"]}


def gpus(phase: names.Phase, **spec: Any) -> str | None:
    found = pod(phase, **spec)["containers"][0]["resources"].get("limits", {}).get("nvidia.com/gpu")
    return None if found is None else str(found)


def test_every_child_of_a_round_says_which() -> None:
    for phase in ("generate", "judge", "train", "export"):
        made = child(phase)
        labels = (made["metadata"]["labels"], made["spec"]["template"]["metadata"]["labels"])
        assert [each[names.LABEL_ROUND] for each in labels] == ["3", "3"]
        assert variables(phase)[names.ENV_ROUND] == "3"
    alone = build_child_job(a_job(), "train", 1, TrainerImage("trainer:1"))
    assert names.LABEL_ROUND not in alone["metadata"]["labels"]


def test_pods_that_generate_are_as_large_as_ranks_and_independent() -> None:
    made, spec = child("generate"), pod("generate")
    assert (made["spec"]["completions"], made["spec"]["suspend"], gpus("generate")) == (2, False, "2")
    assert not takes_turns(a_job(iterative=ASKS), "generate")
    assert spec["containers"][0]["command"][-3:] == ["launch", "--phase", "generate"]
    assert not spec.keys() & {"subdomain", "affinity", "hostNetwork"}
    known = variables("generate")
    assert (known["PET_NNODES"], known["PET_NPROC_PER_NODE"]) == ("2", "2")
    assert "PET_NODE_RANK" in known
    assert not known.keys() & {"PET_MASTER_ADDR", names.ENV_RECORDED_CHECKPOINTS}
    assert made["metadata"]["annotations"][names.ANNOTATION_SIZE] == "2x2"


def test_vllm_has_an_image_of_its_own_and_a_process_for_each_copy() -> None:
    rounds = ASKS | {"generation": {"engine": "vllm", "tensorParallel": 4}}
    job = a_job(iterative=rounds, gpusPerNode=8)
    images = TrainerImage("trainer:1", generate="vllm:1")
    assert [images.of(job, phase) for phase in ("generate", "judge", "train")] == ["vllm:1", "trainer:1", "trainer:1"]
    assert images.of(a_job(iterative=ASKS), "generate") == "trainer:1"
    named = {"iterative": rounds, "gpusPerNode": 8, "pod": {"image": "own:1", "generateImage": "own-vllm:1"}}
    assert [pod(phase, **named)["containers"][0]["image"] for phase in ("generate", "train")] == ["own-vllm:1", "own:1"]
    assert (variables("generate", **named)["PET_NPROC_PER_NODE"], gpus("generate", **named)) == ("2", "8")
    assert variables("train", **named)["PET_NPROC_PER_NODE"] == "8"


def test_the_job_file_of_rounds_has_no_field_that_is_at_its_default() -> None:
    assert "tensorParallel" not in job_file(a_job(iterative=ASKS))
    named = a_job(
        iterative=ASKS | {"generation": {"engine": "vllm", "tensorParallel": 2}}, pod={"generateImage": "own:1"}
    )
    assert "tensorParallel" in job_file(named)
    assert "own:1" not in job_file(named)


def test_generation_and_training_use_the_same_nodes() -> None:
    chosen = {
        "nodeSelector": {"gpu": "h100"},
        "runtimeClassName": "nvidia",
        "tolerations": [{"key": "x", "operator": "Exists"}],
    }
    for phase, rounds in (("generate", ASKS), ("judge", SCORES)):
        spec = pod(phase, pod=chosen, iterative=rounds)  # type: ignore[arg-type]
        assert (spec["nodeSelector"], spec["runtimeClassName"]) == ({"gpu": "h100"}, "nvidia")
        assert {"key": "nvidia.com/gpu", "operator": "Exists"} in spec["tolerations"]
    assert "nodeSelector" not in pod("judge", pod=chosen)


def test_one_pod_judges_with_a_gpu_for_a_reward_model_alone() -> None:
    assert pod_count(a_job(iterative=SCORES), "judge") == 1
    assert (gpus("judge", iterative=SCORES), gpus("judge")) == ("1", None)
    assert "NVIDIA_VISIBLE_DEVICES" not in variables("judge", iterative=SCORES)
    assert variables("judge")["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_the_judges_key_is_a_file_and_in_its_pod_alone() -> None:
    def secrets(phase: names.Phase) -> list[str]:
        return [volume["secret"]["secretName"] for volume in pod(phase)["volumes"] if "secret" in volume]

    assert [(phase, secrets(phase)) for phase in names.PHASES if secrets(phase)] == [("judge", ["judge"])]
    (mount,) = [each for each in pod("judge")["containers"][0]["volumeMounts"] if each["name"] == "judge"]
    assert mount == {"name": "judge", "mountPath": "/etc/dpo-judge", "readOnly": True}
    (volume,) = [each for each in pod("judge")["volumes"] if each["name"] == "judge"]
    assert volume["secret"]["items"] == [{"key": "api", "path": "key"}]
    assert variables("judge")[names.ENV_JUDGE_KEY_FILE] == names.JUDGE_KEY_FILE


def test_a_judge_gets_certificates_and_no_keys_of_stores() -> None:
    access = {"caBundleRef": {"name": "ca"}, "credentialsSecretRef": {"name": "keys"}}
    volumes = {volume["name"] for volume in pod("judge", access=access)["volumes"]}
    assert "ca" in volumes
    assert "credentials" not in volumes
    assert "ca" not in {volume["name"] for volume in pod("judge", access=access, iterative=SCORES)["volumes"]}


def test_a_judge_may_wait_for_the_answers_that_it_paid_for() -> None:
    assert pod("judge")["terminationGracePeriodSeconds"] == 310
    assert pod("judge", pod={"terminationGracePeriodSeconds": 600})["terminationGracePeriodSeconds"] == 600
    assert pod("generate")["terminationGracePeriodSeconds"] == 120


@pytest.mark.parametrize("kind", ["Kueue", "KAI", "Volcano"])
def test_what_holds_gpus_is_queued(kind: str) -> None:
    queue = {"kind": kind, "name": "team"}

    def queued(phase: names.Phase, rounds: dict[str, Any]) -> bool:
        made = child(phase, queue=queue, iterative=rounds)
        return bool(made["spec"]["suspend"]) if kind == "Kueue" else "schedulerName" in made["spec"]["template"]["spec"]

    assert queued("generate", ASKS)
    assert not queued("judge", ASKS)
    # A PodGroup waits for as many pods as there are nodes.
    assert queued("judge", SCORES) == (kind != "Volcano")


def test_the_export_of_a_round_has_neither_keys_nor_a_way_out():
    spec = {"iterative": ASKS, "export": {"push": {"to": "hf://org/name", "credentialsSecretRef": {"name": "writer"}}}}
    job = a_job(**spec)
    texts = {
        number: json.dumps(build_child_job(job, "export", 7, TrainerImage("trainer:1"), number=number))
        for number in (0, 2)
    }
    assert "writer" in texts[0]
    assert "writer" not in texts[2]
    assert "HF_HUB_OFFLINE" in texts[2]
    assert "HF_HUB_OFFLINE" not in texts[0]
    selected = build_push_policy(job, CLOSED)["spec"]["podSelector"]
    assert selected["matchExpressions"] == [{"key": names.LABEL_ROUND, "operator": "DoesNotExist"}]
    assert names.LABEL_ROUND not in json.loads(texts[0])["spec"]["template"]["metadata"]["labels"]
