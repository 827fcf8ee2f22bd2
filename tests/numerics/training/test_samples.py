"""Answers to fixed prompts at each evaluation: the right ones, on any number of ranks, and without a trace in the training."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.metrics_file import read_metrics
from tests.numerics.jobs import a_job, some_pairs, train_on_rank
from tests.numerics.ranks import RankFailed, on_ranks
from tests.unit.trainer.tiny import tiny_model

pytestmark = pytest.mark.numerics

SAMPLES, TOKENS = 3, 6
LORA = {"type": "lora", "rank": 4, "alpha": 16, "dropout": 0.2, "targetModules": ["q_proj", "v_proj"]}


def a_model(folder: Path) -> None:
    """Random weights with opinions, a byte-level tokenizer, and settings that greedy answers must not follow."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny_model(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=261, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=48, initializer_range=0.15, bos_token_id=257, eos_token_id=258,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config.repetition_penalty = 5.0
    model.save_pretrained(folder)


def pairs(count: int, *, seed: int) -> PairDataset:
    """Pairs of bytes that read as text; every prompt comes twice."""
    data = some_pairs(count, seed=seed)
    return PairDataset.from_pairs(
        TokenPair(data[i - i % 2].prompt, data[i].chosen, data[i].rejected, i) for i in range(len(data))
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    """Model and data; runs are made in copies."""
    work = WorkDir(tmp_path_factory.mktemp("prepared"))
    pairs(9, seed=0).save(work.train_data)
    pairs(8, seed=1).save(work.eval_data)
    on_ranks(1, a_model, work.model)
    return work


def a_copy(prepared: WorkDir, root: Path) -> WorkDir:
    shutil.copytree(prepared.root, root)
    return WorkDir(root)


@pytest.fixture(scope="module")
def sampled(prepared: WorkDir, tmp_path_factory: pytest.TempPathFactory) -> tuple[WorkDir, dict[str, Any]]:
    """A whole run on two ranks, and what its rank 0 said."""
    work = a_copy(prepared, tmp_path_factory.mktemp("sampled") / "run")
    return work, on_ranks(2, train_on_rank, a_sampling_job(), work.root)[0]


def a_sampling_job(samples: int = SAMPLES, *, steps: int = 4, lora: bool = False) -> dict[str, Any]:
    document = a_job(maxSteps=steps, gradientCheckpointing=True, learningRate=2e-2)
    document["spec"] |= {
        "evaluation": {"everySteps": 2, "samples": samples, "sampleTokens": TOKENS, "microBatchSize": 1},
        "checkpoint": {"everySteps": 2},
    }
    if lora:
        document["spec"]["adapter"] = LORA
    return document


def test_answers_are_the_models_own_greedy_ones(sampled: tuple[WorkDir, dict[str, Any]]):
    work, said = sampled
    lines = read_metrics(work.samples)
    assert [line["step"] for line in lines] == [0] * 3 + [2] * 3 + [4] * 3
    [expected] = on_ranks(1, plain_greedy, work)
    assert [line["policy"] for line in lines[:3]] == expected["before"]
    assert [line["policy"] for line in lines[6:]] == expected["after"]
    assert expected["before"] != expected["after"]
    for line in lines:
        assert line["reference"] == lines[[x["prompt"] for x in lines[:3]].index(line["prompt"])]["policy"]
        assert 1 <= line["policy_tokens"] <= TOKENS
    # The second pair has the first one's prompt.
    data = PairDataset.open(work.eval_data)
    assert [line["chosen_tokens"] for line in lines[:3]] == [len(data[i].chosen) for i in (0, 2, 4)]
    last = said["evals"][-1]
    assert last["eval_generation_tokens/policy"] == pytest.approx(sum(x["policy_tokens"] for x in lines[6:]) / 3)
    assert last["eval_generation_tokens/reference"] == pytest.approx(sum(x["policy_tokens"] for x in lines[:3]) / 3)


def test_training_is_the_same_with_and_without(
    sampled: tuple[WorkDir, dict[str, Any]], prepared: WorkDir, tmp_path: Path
):
    without = on_ranks(2, train_on_rank, a_sampling_job(0), a_copy(prepared, tmp_path / "without").root)[0]
    assert_same_steps(sampled[1], without)
    assert not (tmp_path / "without" / "samples.jsonl").exists()


@pytest.mark.exhaustive
def test_adapters_are_on_and_their_dropout_draws_the_same_numbers(prepared: WorkDir, tmp_path: Path):
    work = a_copy(prepared, tmp_path / "with")
    ours = on_ranks(2, train_on_rank, a_sampling_job(lora=True), work.root)[0]
    theirs = on_ranks(2, train_on_rank, a_sampling_job(0, lora=True), a_copy(prepared, tmp_path / "without").root)[0]

    assert_same_steps(ours, theirs)
    lines = read_metrics(work.samples)
    assert [line["policy"] for line in lines[:3]] != [line["policy"] for line in lines[6:]]


def assert_same_steps(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["warnings"] == theirs["warnings"] == []
    for mine, other in zip(ours["steps"], theirs["steps"], strict=True):
        for key in ("loss", "grad_norm", "rewards/chosen", "logps/rejected"):
            assert mine[key] == pytest.approx(other[key], rel=1e-6, abs=1e-7), (mine["step"], key)


def plain_greedy(work: WorkDir) -> dict[str, list[str]]:
    """The same answers with no engine, no padding and no cache: the most likely token, one after another."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dpo_trainer.checkpoint.full import open_newest

    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    tokenizer, data = AutoTokenizer.from_pretrained(work.model), PairDataset.open(work.eval_data)

    @torch.no_grad()
    def answers() -> list[str]:
        found = []
        for number in (0, 2, 4):
            ids = data[number].prompt.tolist()
            start = len(ids)
            while len(ids) < start + TOKENS and ids[-1] != 258:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            found.append(tokenizer.decode(ids[start:], skip_special_tokens=True))
        return found

    before = answers()
    trained, _ = open_newest(work.checkpoints)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(trained.tensor(name))
    return {"before": before, "after": answers()}


def test_a_resumed_run_has_each_answer_once(sampled: tuple[WorkDir, dict[str, Any]], prepared: WorkDir, tmp_path: Path):
    work = a_copy(prepared, tmp_path / "run")
    # The signal comes during the evaluation of step 2, which is then made up for by the next attempt.
    first = on_ranks(2, train_on_rank, a_sampling_job(), work.root, 1, (1, 2))
    assert (first[0]["status"], first[0]["evals"]) == ("Stopped", [])
    with work.samples.open("a") as file:
        file.write(json.dumps({"step": 4, "prompt": "of a lost step"}) + '\n{"step": 4, "pro')  # cut off by SIGKILL
    second = on_ranks(1, train_on_rank, a_sampling_job(), work.root, 2)[0]

    assert read_metrics(work.samples) == read_metrics(sampled[0].samples)
    assert [line["step"] for line in second["evals"]] == [2, 4]
    for mine, other in zip(second["evals"], sampled[1]["evals"], strict=True):
        for key in ("eval_loss", "eval_generation_tokens/reference", "eval_generation_tokens/policy"):
            assert mine[key] == pytest.approx(other[key], rel=1e-4)


@pytest.mark.parametrize("why", ["no tokenizer", "no room", "generation refused"])
def test_errors_of_sampling_end_the_samples_and_not_the_run(prepared: WorkDir, tmp_path: Path, why: str):
    work = a_copy(prepared, tmp_path / "run")
    if why == "no tokenizer":
        (work.model / "tokenizer.json").unlink()
    document = a_sampling_job(steps=2)
    if why == "no room":
        document["spec"]["evaluation"]["sampleTokens"] = 48
    ranks = on_ranks(2, refusing if why == "generation refused" else train_on_rank, document, work.root)

    assert [rank["status"] for rank in ranks] == ["Succeeded"] * 2
    assert ranks[0]["warnings"] == ["NoSamples"]
    assert len(ranks[0]["evals"]) == 1
    assert not work.samples.exists()


def refusing(document: dict[str, Any], root: Path) -> dict[str, Any]:
    """One rank of a run with a model that raises when it is asked to generate."""
    from transformers import LlamaForCausalLM

    def refuse(self: Any, **_: Any) -> None:
        raise NotImplementedError("this cache")

    LlamaForCausalLM.generate = refuse
    return train_on_rank(document, root)


@pytest.mark.parametrize("why", ["a prompt of its own", "memory"])
def test_an_error_of_one_rank_ends_the_samples_of_all(
    sampled: tuple[WorkDir, dict[str, Any]], prepared: WorkDir, tmp_path: Path, why: str
):
    work = a_copy(prepared, tmp_path / "run")
    ranks = on_ranks(2, failing_alone, a_sampling_job(), work.root, why)

    assert [rank["status"] for rank in ranks] == ["Succeeded"] * 2
    assert ranks[0]["warnings"] == ["NoSamples"]
    assert {line["step"] for line in read_metrics(work.samples)} == {0}
    assert_same_steps(sampled[1], ranks[0] | {"warnings": []})


@pytest.mark.parametrize("why", ["a prompt of its own", "memory"])
def test_without_room_for_the_whole_model_it_ends_the_attempt(prepared: WorkDir, tmp_path: Path, why: str):
    work, document = a_copy(prepared, tmp_path / "run"), a_sampling_job(steps=2)
    text = "DefaultCPUAllocator" if why == "memory" else why
    with pytest.raises(RankFailed, match=rf"sample answers at step 2: .*{text}.*If that comes again, set"):
        on_ranks(2, failing_alone, document, work.root, why, 0, patience=0)
    if why == "memory":
        # The next attempt does without.
        ranks = on_ranks(2, train_on_rank, document, work.root, 2)
        assert (ranks[0]["status"], ranks[0]["warnings"]) == ("Succeeded", ["NoSamples"])
        assert len(ranks[0]["evals"]) == 1


def test_without_room_for_the_whole_model_answers_are_short(
    sampled: tuple[WorkDir, dict[str, Any]], prepared: WorkDir, tmp_path: Path
):
    work = a_copy(prepared, tmp_path / "run")
    ranks = on_ranks(2, failing_alone, a_sampling_job(), work.root, "", 0)

    assert set(ranks[0]["warnings"]) == {"ShortSamples"}
    assert_same_steps(sampled[1], ranks[0] | {"warnings": []})
    short, whole = read_metrics(work.samples), read_metrics(sampled[0].samples)
    assert max(line["policy_tokens"] for line in short) == 3 < max(line["policy_tokens"] for line in whole)
    assert all(long["policy"].startswith(line["policy"]) for line, long in zip(short[:3], whole[:3], strict=True))


def failing_alone(document: dict[str, Any], root: Path, why: str, room: int | None = None) -> dict[str, Any]:
    """One rank of a run in which rank 1 can't answer a prompt after the first step. room: bytes that are free for the whole model."""
    import torch

    from dpo_trainer.engine import engine
    from dpo_trainer.training.sampling import samples

    generate, calls = samples.generate, 0
    samples.FEW = 3
    if room is not None:
        engine.available = lambda _: room

    def failing(*args: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += settings["tokens"] > 2  # not the first try
        if why and os.environ["RANK"] == "1" and calls == 3:
            if why == "memory":
                torch.empty(1 << 60, dtype=torch.uint8)
            raise ValueError(why)
        return generate(*args, **settings)

    samples.generate = failing
    return train_on_rank(document, root)


def test_a_signal_while_sampling_stops_and_keeps_the_evaluation(prepared: WorkDir, tmp_path: Path):
    work = a_copy(prepared, tmp_path / "run")
    ranks = on_ranks(2, signalled_in_samples, a_sampling_job(steps=6), work.root)

    assert [rank["status"] for rank in ranks] == ["Stopped"] * 2
    assert [line["step"] for line in ranks[0]["steps"]] == [1, 2]
    assert [line["step"] for line in ranks[0]["evals"]] == [2]
    assert {line["step"] for line in read_metrics(work.samples)} == {0}


def signalled_in_samples(document: dict[str, Any], root: Path) -> dict[str, Any]:
    """One rank of a run in which rank 1 gets SIGTERM while the answers of step 2 are generated."""
    from dpo_operator.api.types import DPOJob
    from dpo_trainer.runtime.stop import StopRequest
    from dpo_trainer.telemetry import Telemetry
    from dpo_trainer.training import train
    from dpo_trainer.training.sampling import samples

    rank, stop = int(os.environ["RANK"]), StopRequest()
    telemetry = Telemetry("train", 1, WorkDir(root), rank=rank, world_size=2)
    generate = samples.generate

    def interrupted(*args: Any, **settings: Any) -> Any:
        if rank == 1 and telemetry.progress.step == 2:
            stop.signal_name = "SIGTERM"
        return generate(*args, **settings)

    samples.generate = interrupted
    ended = train.run(DPOJob.model_validate(document), WorkDir(root), telemetry=telemetry, attempt=1, stop=stop)
    telemetry.close()
    lines = read_metrics(root / "metrics.jsonl")
    return {
        "status": ended.status,
        "steps": [line for line in lines if "loss" in line],
        "evals": [line for line in lines if "eval_loss" in line],
    }


def test_draws_have_the_models_distribution_whatever_they_are_grouped_with(prepared: WorkDir):
    [found] = on_ranks(1, draws, prepared.model)
    # Alone and together with others, with a draw and without one.
    assert found["grouped"] == found["alone"]
    assert found["greedy"] == found["greedy_alone"]
    assert found["logp"] == pytest.approx(found["plain_logp"], abs=1e-4)
    # Of 4,000 first tokens: five standard errors of each share.
    for share, expected in zip(found["shares"], found["expected"], strict=True):
        assert abs(share - expected) <= 5 * (expected * (1 - expected) / 4000) ** 0.5 + 1e-9
    assert found["seeds"] == 2


def draws(folder: Path) -> dict[str, Any]:
    """Draws of a plain model, beside its own distribution."""
    from types import SimpleNamespace

    import torch
    from transformers import AutoModelForCausalLM

    from dpo_trainer.training.sampling.generate import generate, numbers

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    engine: Any = SimpleNamespace(
        module=SimpleNamespace(model=model), world=SimpleNamespace(device=torch.device("cpu"), world_size=1)
    )
    prompts = [[7, 8, 9], [30], [99, 100, 101, 102, 103]]

    def drawn(which: list[int], seed: int = 1, tokens: int = 6) -> tuple[list[list[int]], list[Any]]:
        by = numbers(seed, 4, which, tokens)
        with torch.no_grad():
            return generate(engine, [prompts[i] for i in which], tokens=tokens, end=(258,), drawn_by=by)

    greedy, together = drawn([0, 1, 2])
    alone = [drawn([i])[1][0] for i in range(3)]
    with torch.no_grad():
        without, _ = generate(engine, prompts, tokens=6, end=(258,), drawn_by=None)
        ids = torch.tensor([prompts[2] + together[2].ids])
        logps = model(ids).logits[0, 4:-1].double().log_softmax(-1)
        plain = logps.gather(1, ids[0, 5:, None]).sum().item()
        first = model(torch.tensor([prompts[0]])).logits[0, -1].double().softmax(-1)
        prompts = [prompts[0]] * 4000
        many = torch.tensor([one.ids[0] for one in drawn(list(range(4000)), tokens=1)[1]])
    common = first.topk(8).indices
    return {
        "grouped": [one.ids for one in together], "alone": [one.ids for one in alone], "greedy": greedy,
        "greedy_alone": without, "logp": together[2].logp, "plain_logp": plain,
        "shares": [(many == token).double().mean().item() for token in common], "expected": first[common].tolist(),
        "seeds": len({str([one.ids for one in drawn([0, 1, 2], seed)[1]]) for seed in (1, 2)}),
    }  # fmt: skip
