"""Two rounds on fresh answers: two generators, a reward model that judges and a gang of two; a generator and a rank are killed on the way."""

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.generate.dashboards import dashboard_queries
from tests.cluster.scenario import Job, provide_inputs
from tests.numerics.phases import Job as Phases

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
STARTS, PETS = ("Once upon a time", "One day", "In the park"), ("dog", "cat", "bird", "frog", "bear", "duck", "fox")
NAMES = ("Lily", "Tom", "Ben", "Sue", "Max", "Mia")
SAD = ["sad", "cry", "scared", "bad", "no", "not", "but", "hurt", "lost", "dark"]
ROUNDS = {
    "rounds": 2,
    "prompts": {"source": "pvc://inputs/prompts/prompts.jsonl"},
    "promptsPerRound": 48,
    "generation": {"samplesPerPrompt": 4, "maxNewTokens": 40, "unitPrompts": 4},
    "judge": {"type": "rewardModel", "rewardModel": {"name": "pvc://inputs/reward-model", "maxLength": 128, "gpus": 0}},
    "pairs": {"chosenMustEnd": False},
    "winRate": {"prompts": 16},
    # So few prompts say little about who wins.
    "stopWhenWorse": False,
}


@pytest.fixture(scope="module")
def reward_model(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that the product trains and exports here: it likes happy words and no sad ones."""
    root, draw = tmp_path_factory.mktemp("reward"), random.Random(0)

    def story(words: list[str]) -> str:
        return " ".join(f"Tom saw a {draw.choice(words)} day and was {draw.choice(words)}." for _ in range(3))

    pairs = [
        {"prompt": f"Once upon a time, {number}. ", "chosen": story(HAPPY), "rejected": story(SAD)}
        for number in range(160)
    ]
    (root / "train.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    settings = {"learningRate": 3e-3, "globalBatchSize": 16, "microBatchSize": 16, "epochs": 2, "device": "cpu"}
    document = {
        "model": {"name": str(shared / "models" / "stories260K")},
        "data": {"train": {"source": str(root / "train.jsonl")}, "maxLength": 128, "evalFraction": 0.2},
        "method": {"name": "reward-model"},
        "training": settings | {"precision": "fp32", "gradientCheckpointing": False},
        "gpusPerNode": 0,
    }
    trained = Phases(root / "job", {"metadata": {"name": "reward"}, "spec": document})
    trained.run("prepare")
    progress = trained.run("train").progress
    assert progress is not None
    assert (progress.eval.reward_accuracy or 0) > 0.9
    trained.run("export")
    return trained.work / "export"


def test_rounds_survive_kills(job: Job, spec: dict[str, Any], reward_model: Path, tmp_path: Path) -> None:
    # Short ones: the judge reads each answer with its whole prompt.
    asked = [f"{start}, {name} and a {pet}" for start in STARTS for name in NAMES for pet in PETS]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked))
    provide_inputs(job.cluster, {"reward-model": reward_model, "prompts": tmp_path})
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
    assert [first["judged"], second["judged"]] == [48, 48]
    assert min(first["pairs"], second["pairs"]) > 40
    assert 0 <= float(first["winRatePrevious"]) <= 1
    assert float(second["klToInitial"]) > 0
    work = job.work_folder()
    weights = "model.safetensors"
    assert (work / "judge-model" / weights).read_bytes() == (reward_model / weights).read_bytes()
    judged = [json.loads(line) for line in (work / "rounds/0002/judged/unit-00000.jsonl").read_text().splitlines()[1:]]
    assert all(len(set(line["scores"])) > 1 for line in judged)
    of_rounds = [json.loads((work / "rounds" / f"000{n}" / "round.json").read_text()) for n in (1, 2)]
    assert [each["pairs"] for each in of_rounds] == [first["pairs"], second["pairs"]]
    exported = json.loads((work / "export" / "dpo_provenance.json").read_text())
    assert exported["checkpoint"]["attempt"] == 3
    queries = [query for query in dashboard_queries(job.namespace, job.name) if "dpojob_round_" in query]
    # A reward model compares nothing in two orders, and these answers are all cut at one length.
    queries = [query for query in queries if "order_agreement" not in query and "longer_wins" not in query]
    assert len(queries) >= 6
    for query in queries:
        assert job.cluster.prometheus_query(query), f"no data for {query}"
