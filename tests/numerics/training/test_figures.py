"""The figures of diagnosis: those of a plain computation from logits, on any number of ranks, and without a trace in the training."""

from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.diagnosis.record import is_evaluation
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.metrics_file import Line, read_metrics
from tests.numerics.jobs import train_on_rank
from tests.numerics.ranks import on_ranks
from tests.numerics.training.test_samples import LORA, TOKENS, a_copy, a_model, a_sampling_job, pairs

pytestmark = pytest.mark.numerics

SOURCES = {"train": 14, "mixture[0]": 10}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    work = WorkDir(tmp_path_factory.mktemp("prepared"))
    pairs(24, seed=0).save(work.train_data)
    pairs(8, seed=1).save(work.eval_data)
    on_ranks(1, a_model, work.model)
    return work


def a_figures_job(**spec: Any) -> dict[str, Any]:
    """Four steps with packed pairs and an adapter; every step is saved, and step 2 and 4 are evaluated."""
    document = a_sampling_job(lora=True)
    document["spec"]["training"]["packing"] = "shared"
    document["spec"]["checkpoint"] = {"everySteps": 1, "keepLast": 10}
    document["spec"]["data"]["mixture"] = [{"source": "more.jsonl"}]
    document["spec"] |= spec
    return document


def train_with_sources(document: dict[str, Any], root: Path) -> dict[str, Any]:
    """One rank of a run on two sources, as prepare's record would tell."""
    from dpo_trainer.training import build

    build.read_sources = lambda *_: {"training": SOURCES}
    return train_on_rank(document, root)


@pytest.fixture(scope="module")
def runs(prepared: WorkDir, tmp_path_factory: pytest.TempPathFactory) -> dict[str, WorkDir]:
    """The same run on one rank, on two, and on two without diagnosis and samples."""
    made = {}
    for name, ranks, spec in (("one", 1, {}), ("two", 2, {}), ("off", 2, {"diagnosis": {"enabled": False}})):
        made[name] = a_copy(prepared, tmp_path_factory.mktemp(name) / "run")
        document = a_figures_job(**spec)
        if name == "off":
            document["spec"]["evaluation"]["samples"] = 0
        found = on_ranks(ranks, train_with_sources, document, made[name].root)
        assert (found[0]["status"], found[0]["warnings"]) == ("Succeeded", [])
    return made


def lines(work: WorkDir) -> dict[tuple[str, int], Line]:
    return {("eval" if is_evaluation(line) else "train", line["step"]): line for line in read_metrics(work.metrics)}


def test_surprise_is_that_of_plain_logits(runs: dict[str, WorkDir], prepared: WorkDir):
    [expected] = on_ranks(1, plain_surprise, prepared)
    for name in ("one", "two"):
        first = lines(runs[name])["eval", 0]
        assert {key: first[f"eval_{key}"] for key in expected} == pytest.approx(expected, rel=1e-4)


def plain_surprise(work: WorkDir) -> dict[str, float]:
    """The figures of step 0, one pair after another with whole logits."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    model, data = (
        AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32),
        PairDataset.open(work.train_data),
    )
    found = {"surprise/pairs": float(len(data))}
    for side in ("chosen", "rejected"):
        first, rest, every = [], [], []
        for pair in (data[i] for i in range(len(data))):
            answer = torch.from_numpy(np.array(getattr(pair, side), dtype=np.int64))
            ids = torch.cat([torch.from_numpy(np.array(pair.prompt, dtype=np.int64)), answer])[None]
            with torch.no_grad():
                logps = model(ids).logits[0, len(pair.prompt) - 1 : -1].double().log_softmax(-1)
            nll, entropy = -logps.gather(1, answer[:, None])[:, 0], -(logps.exp() * logps).sum(-1)
            hits = (logps.argmax(-1) == answer).double()
            every.append(torch.stack([nll, hits]))
            first.append((nll[:4].sum() / entropy[:4].sum()).item())
            if len(nll) > 4:
                rest.append((nll[4:].sum() / entropy[4:].sum()).item())
        whole = torch.cat(every, dim=1).mean(dim=1)
        found |= {f"surprise/first4_{side}": float(np.median(first)), f"surprise/rest_{side}": float(np.median(rest))}
        found |= {f"nll_per_token/{side}": whole[0].item(), f"token_accuracy/{side}": whole[1].item()}
    return found


def test_two_ranks_begin_as_one_does(runs: dict[str, WorkDir]):
    one, two = lines(runs["one"]), lines(runs["two"])
    assert list(one) == list(two)
    assert list(one)[:2] == [("eval", 0), ("train", 1)]
    first, other = one["eval", 0], two["eval", 0]
    assert first.keys() == other.keys()
    for name in first.keys() - {"time"}:
        assert other[name] == pytest.approx(first[name], rel=1e-4, abs=1e-6), name
    mine, theirs = ([x for x in read_metrics(runs[name].samples) if x["step"] == 0] for name in ("one", "two"))
    assert mine == theirs
    assert [answer["policy_t1"] for answer in mine] != [answer["policy"] for answer in mine]


def test_training_is_the_same_to_the_bit_without(runs: dict[str, WorkDir]):
    [weights] = on_ranks(1, all_weights, runs["two"], runs["off"])
    assert weights["two"] == weights["off"]
    on, off = lines(runs["two"]), lines(runs["off"])
    assert ("eval", 0) not in off
    for key in (("train", 4), ("eval", 4)):
        extra = {name for name in on[key] if name not in off[key]}
        assert {name: on[key][name] for name in off[key] if "time" not in name and "seconds" not in name} == {
            name: value for name, value in off[key].items() if "time" not in name and "seconds" not in name
        }
        wanted = {"margins_std", "token_accuracy/chosen", "entropy/rejected", "logratio_abs_per_token"}
        wanted |= (
            {"source/train/margins", "update_ratio"}
            if key[0] == "train"
            else {"rewards/margins_se", "loss_se", "samples/t1/kl"}
        )
        assert {f"eval_{name}" if key[0] == "eval" else name for name in wanted} <= extra


def all_weights(*works: WorkDir) -> dict[str, Any]:
    """Bytes of the newest checkpoint's weights by the name of the run."""
    from dpo_trainer.checkpoint.full import open_newest

    found = {}
    for work in works:
        checkpoint, _ = open_newest(work.checkpoints)
        names = sorted(checkpoint.manifest.parameters)
        found[work.root.parent.name.rstrip("0123456789")] = {
            n: checkpoint.tensor(n).numpy().tobytes().hex() for n in names
        }
    return found


def test_sources_add_up_to_the_whole_step(runs: dict[str, WorkDir]):
    for step in range(1, 5):
        line = lines(runs["two"])["train", step]
        counts = {name: line.get(f"source/{name}/pairs", 0) for name in SOURCES}
        assert sum(counts.values()) == line["pairs"] == 8
        margin = sum(line[f"source/{name}/margins"] * count for name, count in counts.items() if count) / 8
        assert margin == pytest.approx(line["rewards/margins"], abs=1e-6)


def test_update_ratio_is_that_of_the_saved_weights(runs: dict[str, WorkDir]):
    [expected] = on_ranks(1, plain_update, runs["two"])
    assert lines(runs["two"])["train", 2]["update_ratio"] == pytest.approx(expected, rel=1e-3)


def plain_update(work: WorkDir) -> float:
    """Distance of the weights after step 1 and after step 2, over the norm of the latter."""
    import torch

    from dpo_trainer.checkpoint.full import FullCheckpoint
    from dpo_trainer.checkpoint.layout import committed

    folders = dict(committed(work.checkpoints))
    one, two = (FullCheckpoint(work.checkpoints, folders[step]) for step in (1, 2))
    names = sorted(two.manifest.parameters)
    before, after = (torch.cat([c.tensor(n).double().flatten() for n in names]) for c in (one, two))
    return ((after - before).norm() / after.norm()).item()


def test_the_reference_of_an_adapter_is_the_model_without_it(runs: dict[str, WorkDir]):
    found = lines(runs["two"])
    first, last = found["eval", 0], found["eval", 4]
    assert first["eval_samples/t1/kl"] == pytest.approx(0.0, abs=1e-4)
    assert first["eval_samples/t1/own_nll"] == pytest.approx(first["eval_samples/t1/reference_nll"], rel=1e-5)
    ratio = last["eval_samples/t1/reference_nll"] - last["eval_samples/t1/own_nll"]
    assert last["eval_samples/t1/logratio_per_token"] == pytest.approx(ratio, abs=1e-6)
    assert abs(ratio) > 1e-3
    assert last["eval_samples/t1/kl"] == pytest.approx(ratio * last["eval_samples/t1/tokens"], rel=1e-5)
    assert 1 <= last["eval_samples/t1/tokens"] <= TOKENS
    assert (LORA["rank"], last["eval_samples/prompts"]) == (4, 3)
