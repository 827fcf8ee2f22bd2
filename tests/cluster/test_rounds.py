"""Two rounds on fresh answers: two generators, a judge and a gang of two; a generator and a rank are killed on the way."""

import json
import signal
from typing import Any

import pytest

from dpo_operator.generate.dashboards import dashboard_queries
from tests.cluster.scenario import Job

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

# Words of the stories that the model tells: answers differ in how many of them they have.
HAPPY = [
    "happy",
    "fun",
    "play",
    "friend",
    "friends",
    "love",
    "good",
    "smile",
    "big",
    "kind",
    "nice",
    "mom",
    "dad",
    "park",
]
SAD = ["sad", "cry", "scared", "bad", "no", "not", "but", "hurt", "lost", "dark"]
ROUNDS = {
    "rounds": 2,
    "promptsPerRound": 48,
    "generation": {"samplesPerPrompt": 4, "maxNewTokens": 40, "unitPrompts": 4},
    "judge": {"type": "builtin", "builtin": {"name": "distinctWords", "words": HAPPY, "badWords": SAD}},
    "pairs": {"chosenMustEnd": False},
    "winRate": {"prompts": 16},
    # So few prompts say little about who wins.
    "stopWhenWorse": False,
}


def test_rounds_survive_kills(job: Job, spec: dict[str, Any]) -> None:
    checkpoints = spec["checkpoint"] | {"everySteps": 2}
    job.apply(spec | {"iterative": ROUNDS, "checkpoint": checkpoints, "failurePolicy": {"backoffSeconds": 1}})
    job.wait(lambda s: s.get("state") == "Generating", "generators of round 1")
    generators = job.pods("generate")
    assert len(generators) == 2
    assert {pod["metadata"]["labels"]["dpo-operator.dev/round"] for pod in generators} == {"1"}
    job.cluster.signal_pod(generators[1]["metadata"]["name"], signal.SIGKILL)
    job.wait(lambda s: s["attempts"].get("generate") == 2, "another attempt of the generators")

    job.wait(
        lambda s: s.get("round") == 2 and s.get("phase") == "train" and (s.get("progress") or {}).get("step", 0) >= 2,
        "training of round 2",
        600,
    )
    job.cluster.signal_pod(job.pods("train")[1]["metadata"]["name"], signal.SIGKILL)
    status = job.wait_for_state("Complete", timeout=600)

    assert [(entry["phase"], entry["counting"]) for entry in status["restartHistory"]] == [
        ("generate", "Counted"),
        ("train", "Counted"),
    ]
    assert status["attempts"] == {"prepare": 1, "generate": 4, "judge": 3, "train": 3, "export": 3}
    first, second = status["rounds"]
    assert (first["prompts"], second["prompts"]) == (48, 48)
    assert min(first["pairs"], second["pairs"]) > 10
    assert 0 <= float(first["winRatePrevious"]) <= 1
    assert float(second["klToInitial"]) > 0
    work = job.work_folder()
    of_rounds = [json.loads((work / "rounds" / f"000{n}" / "round.json").read_text()) for n in (1, 2)]
    assert [each["pairs"] for each in of_rounds] == [first["pairs"], second["pairs"]]
    exported = json.loads((work / "export" / "dpo_provenance.json").read_text())
    assert exported["checkpoint"]["attempt"] == 3
    queries = [query for query in dashboard_queries(job.namespace, job.name) if "dpojob_round_" in query]
    # A rule makes no requests, and compares nothing in two orders.
    queries = [query for query in queries if "order_agreement" not in query and "longer_wins" not in query]
    assert len(queries) >= 6
    for query in queries:
        assert job.cluster.prometheus_query(query), f"no data for {query}"
