"""`dpo plan`: what it reads, what it prints, and what it says instead of a traceback."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from dpo_operator.api import names
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.cli import jobfile, modelsource
from dpo_operator.cli.main import app
from tests.unit.sizing.build import PARAMETERS, QWEN_7B, SMALL

pytestmark = pytest.mark.unit


def a_job(folder: Path, **spec: Any) -> Path:
    least = {"model": {"name": "./model"}, "data": {"train": {"source": "./pairs.jsonl"}}, "gpusPerNode": 0}
    document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "a"}, "spec": least | spec}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def a_model(folder: Path, config: Any = SMALL) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def dpo_plan(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["plan", *(str(a) for a in arguments)], env={"COLUMNS": "200"})


def planned(*arguments: object) -> dict[str, Any]:
    done = dpo_plan(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(done: Result, *words: str) -> None:
    assert done.exit_code == ExitCode.INVALID_CONFIGURATION
    assert isinstance(done.exception, SystemExit)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in ("error:", *words)), done.stderr


def test_a_model_beside_the_file_is_read(tmp_path: Path) -> None:
    a_model(tmp_path / "model")
    found = planned(a_job(tmp_path))
    assert found["model"]["parameters"] == PARAMETERS
    assert found["memory"]["peak"] == pytest.approx(sum(found["memory"]["parts"].values()), abs=20)
    assert found["memory"]["limit"] is None
    assert found["memory"]["fits"]


def test_a_cpu_job_is_held_against_the_limit_of_its_pod(tmp_path: Path) -> None:
    a_model(tmp_path / "model")
    pod = {"resources": {"limits": {"memory": "512Mi"}}}
    assert not planned(a_job(tmp_path, pod=pod))["memory"]["fits"]
    assert planned(a_job(tmp_path, pod=pod), "--gpu-memory", "2Gi")["memory"]["fits"]


def test_a_copy_that_generates_is_held_against_its_gpus(tmp_path: Path) -> None:
    a_model(tmp_path / "model", QWEN_7B)
    rounds = {"judge": {"type": "builtin", "builtin": {"name": "length", "tokens": 5}}}

    def shown(**generation: Any) -> str:
        job = a_job(tmp_path, gpusPerNode=4, iterative=rounds | {"generation": generation})
        return dpo_plan(job, "--gpu-memory", "16Gi").stdout

    assert "raise tensorParallel" in shown()
    parallel = shown(engine="vllm", tensorParallel=4)
    assert "weights of a copy that generates, on each of its 4 GPUs" in parallel
    assert "raise tensorParallel" not in parallel


def test_a_job_that_does_not_fit_gets_lines_to_paste(tmp_path: Path) -> None:
    a_model(tmp_path / "model", QWEN_7B)
    job = a_job(tmp_path, gpusPerNode=4)
    shown = dpo_plan(job, "--gpu", "a100-40").stdout
    assert "does not fit" in shown
    before, _, after = shown.partition("The smallest change that makes it fit")
    assert "7.62B parameters" in before
    lines = [line for line in after.splitlines()[1:] if line.startswith("  ")]
    changes = yaml.safe_load(lines[0])
    document = yaml.safe_load(job.read_text())
    document["spec"] |= changes
    job.write_text(yaml.safe_dump(document))
    assert " fits, " in dpo_plan(job, "--gpu", "a100-40").stdout
    assert jobfile.read(job).spec.training.offload == "cpu"


def test_what_prepare_found_is_used(tmp_path: Path) -> None:
    a_model(tmp_path / "model")
    work = tmp_path / "work"
    work.mkdir()
    tokens = {"prompt": 10, "chosen": 20, "rejected": 30, "longest": 90}
    report = {"train_pairs": 1000, "eval_pairs": 0, "tokens": tokens}
    (work / "prepared.json").write_text(json.dumps({"report": report}))
    a_model(work / "model", SMALL | {"vocab_size": 64})
    found = planned(a_job(tmp_path), "--work-dir", work)
    assert found["pairs"] == tokens | {"known": True, "count": 1000}
    assert found["model"]["parameters"] == PARAMETERS + 2 * 32 * 8
    assert "whole run" in dpo_plan(a_job(tmp_path), "--work-dir", work).stdout


def test_lengths_can_be_said(tmp_path: Path) -> None:
    a_model(tmp_path / "model")
    found = planned(a_job(tmp_path), "--prompt-tokens", 100, "--answer-tokens", 40)["pairs"]
    assert (found["prompt"], found["chosen"], found["rejected"], found["known"]) == (100, 40, 40, False)


def test_a_measured_speed_is_taken_as_it_is(tmp_path: Path) -> None:
    a_model(tmp_path / "model")
    slow, fast = (planned(a_job(tmp_path), "--flops", flops)["step"]["body"] for flops in (1e9, 1e10))
    assert slow == pytest.approx(10 * fast)


def test_a_hub_that_cannot_be_reached_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    job = a_job(tmp_path, model={"name": "org/model"})
    refused(dpo_plan(job), "config.json of org/model could not be fetched", "--model-config")
    assert planned(job, "--model-config", a_model(tmp_path / "else"))["model"]["parameters"] == PARAMETERS


def test_a_hub_that_does_not_answer_ends_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(modelsource, "ANSWER_SECONDS", 0.2)
        job = a_job(tmp_path, model={"name": "org/model"})
        done = dpo_plan(job)
        refused(done, "config.json of org/model could not be fetched", "--model-config")
        silent.settimeout(0)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # the hub was asked once, and not tried again
            silent.accept()


def test_a_claim_is_a_folder_here(tmp_path: Path) -> None:
    a_model(tmp_path / "claims" / "models" / "tiny")
    job = a_job(tmp_path, model={"name": "pvc://models/tiny"})
    assert planned(job, "--claims", tmp_path / "claims")["model"]["parameters"] == PARAMETERS
    refused(dpo_plan(job, "--claims", tmp_path), "config.json: can't be read", "--model-config")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "expected an object, found list"),
        ('{"model_type": "llama"}', "expected hidden_size"),
        (json.dumps(SMALL | {"vocab_size": -1}), "vocab_size: expected a whole number"),
    ],
    ids=["not JSON", "nested", "a list", "nothing in it", "negative"],
)
def test_a_wrong_configuration_is_one_sentence(tmp_path: Path, config: str, words: str) -> None:
    a_model(tmp_path / "model", config)
    refused(dpo_plan(a_job(tmp_path)), "model/config.json", words)


@pytest.mark.parametrize(
    ("spec", "arguments", "words"),
    [
        ({}, ["--gpu", "h100"], "--gpu: h100 has no use for a job without GPUs"),
        ({"gpusPerNode": 1}, ["--gpu", "banana"], "--gpu: expected one of h200, h100"),
        ({"gpusPerNode": 1}, ["--gpu-memory", "80gb"], "expected an amount such as 80Gi"),
        ({"model": {"name": "s3://bucket/model"}}, [], "s3://bucket/model is not read here"),
    ],
)
def test_wrong_arguments_are_one_sentence(tmp_path: Path, spec: dict, arguments: list[str], words: str) -> None:
    a_model(tmp_path / "model")
    refused(dpo_plan(a_job(tmp_path, **spec), *arguments), words)


def test_a_work_folder_without_what_prepare_writes(tmp_path: Path) -> None:
    a_model(tmp_path / "model")
    refused(dpo_plan(a_job(tmp_path), "--work-dir", tmp_path), "prepared.json: can't be read")
    (tmp_path / "prepared.json").write_text('{"report": 1}')
    refused(dpo_plan(a_job(tmp_path), "--work-dir", tmp_path), "is not what prepare writes")


SIZES = st.integers(min_value=1, max_value=1 << 24)


@given(
    config=st.fixed_dictionaries(dict.fromkeys(SMALL.keys() - {"model_type"}, SIZES)),
    family=st.sampled_from(["llama", "gemma2", "gpt2", "qwen3"]),
    gpus=st.sampled_from([0, 1, 8]),
    memory=st.sampled_from(["1", "1Gi", "80Gi", "1E"]),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_dimensions_give_a_plan(tmp_path: Path, config: dict, family: str, gpus: int, memory: str) -> None:
    config |= {"model_type": family, "num_hidden_layers": min(config["num_hidden_layers"], 1 << 14)}
    a_model(tmp_path / "model", config)
    job = a_job(tmp_path, gpusPerNode=gpus)
    done = dpo_plan(job, "--gpu-memory", memory)
    if done.exit_code:
        refused(done, "model/config.json")
    else:
        found = planned(job, "--gpu-memory", memory)
        assert found["memory"]["peak"] > 0
        assert found["step"]["seconds"] > 0


def test_it_says_what_an_adapter_covers(tmp_path: Path) -> None:
    def line(targets: list[str]) -> str:
        done = dpo_plan(a_job(tmp_path, adapter={"type": "lora", "targetModules": targets}))
        return next(line for line in done.stdout.splitlines() if line.startswith("adapter: "))

    a_model(tmp_path / "model")
    rest = "k_proj, o_proj, gate_proj, up_proj, down_proj, the output layer"
    assert line(["q_proj", "v_proj"]) == f"adapter: on q_proj, v_proj; not on {rest}"
    assert "name none of its matrices (q_proj, k_proj" in line(["c_attn"])
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    a_model(tmp_path / "model", SMALL | {"model_type": "mixtral", **experts})
    covered = "q_proj, k_proj, v_proj, o_proj, experts.gate_up_proj, experts.down_proj"
    assert line(["all-linear"]) == f"adapter: on {covered}; not on gate, the output layer"


def test_another_reference_model_is_counted(tmp_path: Path) -> None:
    a_model(tmp_path / "model")
    a_model(tmp_path / "large", SMALL | {"num_hidden_layers": 16000})
    model = {"name": "./model", "reference": {"name": "./large"}}
    phases = planned(a_job(tmp_path, model=model))["memory"]["phases"]
    alone = planned(a_job(tmp_path))["memory"]["phases"]
    assert phases.pop("another reference model") > max(alone.values())
    assert phases == alone
    refused(dpo_plan(a_job(tmp_path, model={**model, "reference": {"name": "./none"}})), "none/config.json")


def test_a_selection_is_counted(tmp_path: Path) -> None:
    a_model(tmp_path / "model")
    work = tmp_path / "work"
    work.mkdir()
    tokens = {"prompt": 10, "chosen": 20, "rejected": 30, "longest": 90}
    report = {"train_pairs": 1000, "eval_pairs": 0, "tokens": tokens}
    (work / "prepared.json").write_text(json.dumps({"report": report}))
    a_model(work / "model", SMALL)
    times = {}
    for name, selection in (("all", None), ("some", {"by": "rewardGap", "keep": {"quantiles": [0.5, 1.0]}})):
        training = {"globalBatchSize": 8, "selection": selection}
        done = dpo_plan(a_job(tmp_path, training=training), "--work-dir", work)
        assert ("ranking the pairs, in all" in done.stdout) == (selection is not None), done.stdout
        times[name] = planned(a_job(tmp_path, training=training), "--work-dir", work)["step"]["ranking"]
    assert times["some"] > times["all"] == 0
