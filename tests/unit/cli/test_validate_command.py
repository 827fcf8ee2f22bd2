"""`dpo validate`: errors, and notes on what a cluster's administrator decides."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from dpo_operator.api import names
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.cli.main import app

pytestmark = pytest.mark.unit


SMALL_MODEL = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def validated(folder: Path, *arguments: str, **spec: Any) -> Result:
    least = {"model": {"name": "org/model"}, "data": {"train": {"source": "org/pairs"}}}
    document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "a"}, "spec": least | spec}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return CliRunner().invoke(app, ["validate", str(path), *arguments])


def test_a_plain_job_is_valid_without_notes(tmp_path: Path) -> None:
    done = validated(tmp_path)
    assert done.exit_code == 0
    assert "is valid" in done.stderr
    assert "note:" not in done.stderr


def test_a_dangerous_setting_is_a_warning_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(SMALL_MODEL))
    done = validated(tmp_path, training={"learningRate": 1e-2})
    assert done.exit_code == 0
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning:")]
    assert "spec.training.learningRate: 0.01 is high" in warning
    assert "(DPO technical guide" in warning
    small = validated(tmp_path, model={"name": "./model"}, training={"learningRate": 1e-2})
    assert (small.exit_code, "warning:" in small.stderr) == (0, False)


def test_a_variable_on_no_list_is_an_error_unless_allowed(tmp_path: Path) -> None:
    pod = {"env": [{"name": "NCCL_NET_PLUGIN_X"}]}
    refused = validated(tmp_path, pod=pod)
    assert refused.exit_code == ExitCode.INVALID_CONFIGURATION
    assert "NCCL_NET_PLUGIN_X" in refused.stderr
    assert validated(tmp_path, "--allow-env", "NCCL_NET_*", pod=pod).exit_code == 0
    wrong = validated(tmp_path, "--allow-env", "a*b", pod=pod)
    assert wrong.exit_code == ExitCode.INVALID_CONFIGURATION
    assert "--allow-env" in wrong.stderr


def test_what_an_administrator_decides_is_a_note(tmp_path: Path) -> None:
    done = validated(tmp_path, pod={"network": {"hostNetwork": True}, "image": "own.example/x"})
    assert done.exit_code == 0
    notes = [line for line in done.stderr.splitlines() if line.startswith("note:")]
    assert [part in note for part, note in zip(("allow.images", "allow.hostNetwork"), notes, strict=True)] == [
        True,
        True,
    ]


def test_the_first_rows_of_local_data_are_looked_at(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "messages": [{"role": "user", "content": f"Q{i}"}, {"role": "assistant", "content": "a"}],
            "rejected_response": "b",
        }
        for i in range(70)
    ]
    rows[3]["rejected_response"] = "a"
    (tmp_path / "swift.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "claims" / "more").mkdir(parents=True)
    (tmp_path / "claims" / "more" / "a.csv").write_text(
        "prompt,response_a,response_b,winner\nQ,a,b,model_b\nR,a,b,tie\n"
    )
    data = {
        "train": {"source": "./swift.jsonl"},
        "mixture": [{"source": "pvc://more/a.csv"}, {"source": "s3://nowhere/a.jsonl"}],
        "eval": {"source": "org/pairs"},
        "filters": {"maxBadRows": 0.1},
    }
    done = validated(tmp_path, "--data", "--claims", str(tmp_path / "claims"), data=data)
    shown = capfd.readouterr().out.splitlines()
    assert done.exit_code == 0
    train, mixture, store, evaluation = (line.replace(f"{tmp_path}/", "") for line in shown)
    assert train == (
        "train: swift.jsonl: messages; 63 pairs in the first 64 rows; left out: equal_answers 1. The first: swift.jsonl line 4, "
        "equal_answers: the answers are the same but for white space at their ends"
    )
    assert mixture.startswith(
        "mixture[0]: pvc://more/a.csv: votes; 1 pairs in the first 2 rows; left out: tie 1. The first: a.csv line 3, tie"
    )
    assert (
        store == "mixture[1]: s3://nowhere/a.jsonl is not on this machine and was not looked at; dpo preview reads it"
    )
    assert evaluation == "eval: org/pairs is not on this machine and was not looked at; dpo preview reads it"


def test_data_that_would_be_refused_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": json.dumps({"messages": [], "tools": []}), "other": 1}))
    data = {"train": {"source": "./a.jsonl"}}
    assert validated(tmp_path, data=data).exit_code == 0
    done = validated(tmp_path, "--data", data=data)
    assert done.exit_code == ExitCode.BAD_DATASET
    words = "fit no format: text: text that holds an object as JSON, with messages, tools; a name such as text.messages goes into it"
    assert words in (shown := capfd.readouterr().err)
    assert "found text (str), other (int)" in shown


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "prompt,chosen,rejected\n", "no usable pair in 0 rows (no rows at all)"),
        (
            "a.json",
            '{"data": [{"prompt": "Q"}], "n": 1}',
            "data: a list of 1 inside the only object; write its items themselves",
        ),
        (
            "a.jsonl",
            '{"text": "{\\"chosen\\": 1}"}',
            "text: text that holds an object as JSON, with chosen; a name such as text.chosen",
        ),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": "Q"}]}',
            "one conversation each, as for supervised fine-tuning",
        ),
        (
            "a.jsonl",
            '{"prompt": "Q", "chosen": "a", "rejected": "b", "images": ["x"]}',
            "set ignoreColumns to [images]",
        ),
    ],
)
def test_what_was_found_is_said_with_the_way_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    assert validated(tmp_path, "--data", data={"train": {"source": f"./{name}"}}).exit_code == ExitCode.BAD_DATASET
    assert words in capfd.readouterr().err


def test_what_rounds_cost_is_a_note(tmp_path: Path) -> None:
    endpoint = {"url": "http://judge/v1", "model": "m", "mode": "score"}
    rounds = {
        "rounds": 2,
        "promptsPerRound": 100,
        "judge": {"type": "endpoint", "endpoint": endpoint},
        "winRate": {"prompts": 0},
    }
    done = validated(tmp_path, iterative=rounds)
    assert done.exit_code == 0
    assert "2 rounds generate up to 800 answers of 819,200 tokens in all, and 800 requests to the judge" in done.stderr
