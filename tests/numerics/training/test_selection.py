"""training.selection on real ranks: which pairs are trained on, that all are evaluated on, and kills at each point of the ranking."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from dpo_operator.api import names
from dpo_operator.api.types import DPOJob
from dpo_operator.cli.main import app
from dpo_trainer.batches import rankings
from dpo_trainer.batches.plans import plan_of
from dpo_trainer.checkpoint import layout
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.interruptions import curve, folder, train_until
from tests.numerics.jobs import a_job, some_pairs
from tests.numerics.ranks import RankFailed, on_ranks
from tests.numerics.training.test_killed_run import fill
from tests.ports import free_port
from tests.unit.trainer.tiny import tiny_model, write_jsonl

pytestmark = pytest.mark.numerics

PAIRS, BATCH, WARM_STEPS = 21, 4, 2
SELECTION: dict[str, Any] = {"by": "rewardGap", "warmup": 0.4, "keep": {"quantiles": [0.25, 1.0]}}
LORA = {"type": "lora", "rank": 3, "dropout": 0.3, "targetModules": ["q_proj", "v_proj"]}
# Over another number of ranks sums are made in another order.
CLOSE = {"rel": 2e-4, "abs": 2e-5}


def job(adapter: dict[str, Any] | None = None, **selection: Any) -> dict[str, Any]:
    """Two epochs of 21 pairs in steps of four."""
    document = a_job(globalBatchSize=BATCH, epochs=2.0, selection=SELECTION | selection)
    document["spec"]["evaluation"] = {"everySteps": 3, "samples": 0}
    # A kill in the first batch that is ranked must not come before the save of the step before.
    document["spec"]["checkpoint"]["async"] = False
    if adapter:
        document["spec"]["adapter"] = adapter
    return document


def prepare(root: Path) -> None:
    folder(root, pairs=some_pairs(PAIRS))
    some_pairs(5, seed=1).save(WorkDir(root).eval_data)


def killed_in(document: dict[str, Any], root: Path, attempt: int, point: str, **more: Any) -> dict[str, Any]:
    """Be one rank of a run of which one rank is killed while the pairs are ranked."""
    from dpo_trainer.training.selecting import figures

    def die(rank: int) -> None:
        if os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.SIGKILL)

    logps_of, write, commit = figures.logps_of, rankings.write, rankings.commit

    def commit_and_die(path: Path, content: bytes) -> None:
        commit(path, content)
        if path.suffix == ".npy":
            die(0)

    if point == "passes":
        figures.logps_of = lambda *given: (die(1), logps_of(*given))[1]  # type: ignore[assignment]
    if point == "list without its record":
        rankings.commit = commit_and_die
    if point == "committed":
        rankings.write = lambda *given: (write(*given), die(0))[0]  # type: ignore[assignment]
    return train_until(document, root, attempt, **more)


def stopped_in_passes(document: dict[str, Any], root: Path, attempt: int) -> dict[str, Any]:
    """Be one rank of a run that gets SIGTERM on one rank while the pairs are ranked."""
    from dpo_trainer.runtime.job import stop_on_request
    from dpo_trainer.training import train
    from dpo_trainer.training.selecting import figures

    stop, logps_of = stop_on_request(), figures.logps_of

    def then_stop(*given: Any) -> Any:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return logps_of(*given)

    figures.logps_of = then_stop
    from dpo_trainer.telemetry import Telemetry

    telemetry = Telemetry(
        "train", attempt, WorkDir(root), rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"])
    )
    ended = train.run(DPOJob.model_validate(document), WorkDir(root), telemetry=telemetry, attempt=attempt, stop=stop)
    telemetry.close()
    return {"status": ended.status, "message": ended.message}


def stopped_after(document: dict[str, Any], root: Path, step: int) -> dict[str, Any]:
    return train_until(document, root, 1, stop_after=step)


def lists(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "selection").glob("*.npy"))}


def test_only_kept_pairs_are_trained_on_and_all_evaluated(tmp_path: Path) -> None:
    prepare(tmp_path)
    document = job()
    on_ranks(2, train_until, document, tmp_path, 1)
    work = WorkDir(tmp_path)
    plan = plan_of(DPOJob.model_validate(document).spec, PAIRS)
    [ranking] = rankings.read_all(work.selection)
    assert (ranking.step, ranking.ranked, ranking.kept) == (WARM_STEPS, PAIRS - BATCH * WARM_STEPS, 10)
    kept = np.load(work.selection / "epoch-0.npy")
    plan.lists[0] = kept  # type: ignore[union-attr]
    lines = curve(tmp_path)
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == plan.total_steps(epochs=2.0, max_steps=None) == 2 * 5
    data = some_pairs(PAIRS)
    for line in steps:
        lengths = data.lengths[plan.step(line["step"]), 1:]
        assert line["response_tokens/chosen"] == pytest.approx(lengths[:, 0].mean())
        assert line["response_tokens/rejected"] == pytest.approx(lengths[:, 1].mean())
    dropped = set(range(PAIRS)) - {int(i) for line in steps for i in plan.step(line["step"])}
    assert len(dropped) == ranking.ranked - ranking.kept == 3
    # Every evaluation is of all five pairs.
    held_out = some_pairs(5, seed=1).lengths[:, 1:].mean(axis=0)
    evaluations = [line for line in lines if "eval_loss" in line]
    assert len(evaluations) >= 3
    for line in evaluations:
        assert [line["eval_response_tokens/chosen"], line["eval_response_tokens/rejected"]] == pytest.approx(held_out)
    assert ranking.tokens == int((data.lengths[plan.ranked(0)] @ [2, 1, 1]).sum())  # type: ignore[union-attr]


CASES = [
    pytest.param({}, None, 1, id="resumed on one rank"),
    pytest.param({}, None, 2, id="resumed on two ranks", marks=pytest.mark.exhaustive),
    pytest.param({"refresh": "epoch", "order": "easyFirst"}, None, 1, id="each epoch", marks=pytest.mark.exhaustive),
    pytest.param({"by": "heldOutLoss", "order": "hardFirst"}, LORA, 2, id="lora", marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize(("selection", "adapter", "ranks"), CASES)
def test_killed_while_ranking_and_resumed(
    tmp_path: Path, selection: dict[str, Any], adapter: dict[str, Any] | None, ranks: int
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    prepare(straight)
    shutil.copytree(straight, broken)
    document = job(adapter, **selection)
    on_ranks(2, train_until, document, straight, 1)
    whole = curve(straight)

    for attempt, point in enumerate(("passes", "list without its record", "committed"), start=1):
        with pytest.raises(RankFailed):
            on_ranks(2, killed_in, document, broken, attempt, point, patience=5)
        # The state after the warm-up is safe, and no step is trained again.
        assert [step for step, _ in layout.committed(broken / "checkpoints")] == [WARM_STEPS]
    assert lists(broken)["epoch-0.npy"] == lists(straight)["epoch-0.npy"]

    found = on_ranks(ranks, train_until, document, broken, 4)
    assert {one["resumed_from"] for one in found} == {WARM_STEPS}
    if ranks == 2:
        assert curve(broken) == whole
        assert lists(broken) == lists(straight)
        return
    assert lists(broken)["epoch-0.npy"] == lists(straight)["epoch-0.npy"]
    for line, expected in zip(curve(broken), whole, strict=True):
        keys = [key for key in ("loss", "eval_loss", "response_tokens/chosen") if key in expected]
        assert [line[key] for key in keys] == pytest.approx([expected[key] for key in keys], **CLOSE)


@pytest.mark.exhaustive
def test_stopped_while_ranking_loses_no_step(tmp_path: Path) -> None:
    prepare(tmp_path)
    document = job()
    found = on_ranks(2, stopped_in_passes, document, tmp_path, 1)
    assert {one["status"] for one in found} == {"Stopped"}
    assert "while pairs were ranked" in found[0]["message"]
    assert [step for step, _ in layout.committed(tmp_path / "checkpoints")] == [WARM_STEPS]
    assert not lists(tmp_path)
    [again] = on_ranks(1, train_until, document, tmp_path, 2)
    assert (again["status"], again["resumed_from"]) == ("Succeeded", WARM_STEPS)


def test_a_list_that_steps_used_is_not_made_again(tmp_path: Path) -> None:
    prepare(tmp_path)
    document = job()
    [first] = on_ranks(1, stopped_after, document, tmp_path, WARM_STEPS + 2)
    assert first["status"] == "Stopped"
    record = tmp_path / "selection/epoch-0.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"wrong_sign": 0.5, "sha256": "0" * 64}))
    with pytest.raises(RankFailed, match="expected the list of pairs with the SHA-256"):
        on_ranks(1, train_until, document, tmp_path, 2)


def test_dpo_run_drops_the_lowest_scores_of_a_mixture(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The user's door: prepare, a run without a warm-up, and its report."""
    fill(tiny_model(tmp_path / "model"))
    for name, scores in (("a", range(2, 8)), ("b", range(2, 6))):
        rows = [
            {"prompt": f"Ask {name} {i}:", "chosen": " yes", "rejected": " no", "score_chosen": i, "score_rejected": 1}
            for i in scores
        ]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    spec: dict[str, Any] = {
        "model": {"name": "./model"},
        "data": {"train": {"source": "./a.jsonl"}, "mixture": [{"source": "./b.jsonl"}], "maxLength": 64},
        "training": {
            "globalBatchSize": 3, "learningRate": 1e-3, "precision": "fp32",
            "selection": {"by": "scoreGap", "keep": {"quantiles": [0.4, 1.0]}, "order": "hardFirst"},
        },
        "gpusPerNode": 0,
    }  # fmt: skip
    document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "tiny"}, "spec": spec}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(document))
    done = CliRunner().invoke(
        app,
        ["run", str(tmp_path / "job.yaml"), "--work-dir", str(tmp_path / "work"), "--metrics-port", str(free_port())],
    )
    assert done.exit_code == 0, done.stderr
    work = WorkDir(tmp_path / "work")
    kept = np.load(work.selection / "epoch-0.npy")
    # Gaps are 1 to 6 and 1 to 4; the pairs with 1 and 2 are dropped.
    assert PairDataset.open(work.train_data).score_gaps[kept].tolist() == [3, 3, 4, 4, 5, 6]
    assert [line["pairs"] for line in curve(work.root)] == [3, 3]
    for page in ("report.txt", "report.html"):
        text = (work.report / page).read_text()
        assert "trains on 6 of 10 ranked pairs, with scoreGap between 3 and 6" in text
        assert "train 4 of 6, mixture[0] 2 of 4" in text
    assert "Info: PairsSelected: Epoch 1 trains on 6 of 10" in capfd.readouterr().err
