"""`dpo run` and `dpo preview`: which work folders they take, and what they say instead of a traceback."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from dpo_operator.api import names
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.cli.main import app
from tests.unit.trainer.tiny import CHATML, tiny_model, write_jsonl

pytestmark = pytest.mark.unit


@pytest.fixture
def job(tmp_path: Path) -> Path:
    tiny_model(tmp_path / "model")
    write_jsonl(
        tmp_path / "pairs.jsonl", [{"prompt": f"Ask {i}:", "chosen": " yes", "rejected": " no"} for i in range(3)]
    )
    spec = {"model": {"name": "./model"}, "data": {"train": {"source": "./pairs.jsonl"}}, "gpusPerNode": 0}
    document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "tiny"}, "spec": spec}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def dpo(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(result: Result, *words: str) -> None:
    """The command said why, on one line, and nothing was raised past it."""
    assert result.exit_code == ExitCode.INVALID_CONFIGURATION
    assert isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert all(word in result.stderr for word in ("error:", *words)), result.stderr


@pytest.mark.parametrize("fresh", [(), ("--fresh",)], ids=["go on", "fresh"])
@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"kind": "Package"}', '{"kind": "DPOJob", "spec": 1, "metadata": {}}']
)
def test_a_folder_of_something_else_is_left_alone(job: Path, tmp_path: Path, content: str, fresh: tuple[str, ...]):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes").write_text("keep")
    if content:
        (folder / "job.json").write_text(content)
    refused(dpo("run", job, "--work-dir", folder, *fresh), str(folder))
    assert (folder / "notes").read_text() == "keep"
    assert sorted(p.name for p in folder.iterdir()) == (["job.json", "notes"] if content else ["notes"])


@pytest.mark.parametrize("fresh", [(), ("--fresh",)], ids=["go on", "fresh"])
def test_a_file_is_no_work_folder(job: Path, tmp_path: Path, fresh: tuple[str, ...]):
    (tmp_path / "file").write_text("keep")
    refused(dpo("run", job, "--work-dir", tmp_path / "file", *fresh), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "keep"


def test_a_folder_that_cannot_be_made(job: Path):
    refused(dpo("run", job, "--work-dir", "/proc/no-such-process/work"), "/proc/no-such-process/work")


def test_preview_prepares_and_shows_tokens_and_mask(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    work, instead = tmp_path / "work", tmp_path / "instead" / "torch"
    # Whoever imports torch gets this, and leaves a trace. Tokenizers need no torch, and its import takes seconds.
    instead.mkdir(parents=True)
    (instead / "__init__.py").write_text("open(__file__ + '.imported', 'w').close()")
    monkeypatch.setenv("PYTHONPATH", str(instead.parent))
    done = dpo("preview", job, "--work-dir", work)
    shown = capfd.readouterr()
    assert done.exit_code == 0, shown.err
    assert "PyTorch was not found" not in shown.err
    assert not (instead / "__init__.py.imported").exists()
    report, mark, first_pairs = shown.out.partition("pair 0 (row 0)")
    assert mark
    assert report.startswith("Data report\n")
    assert "picture: data/report.png\n" in report
    assert (mark + first_pairs).splitlines()[:4] == [
        "pair 0 (row 0)",
        "  prompt   mask 0     7 tokens |<s>|A|s|k| |0|:|",
        "  chosen   mask 1     5 tokens | |y|e|s|</s>|",
        "  rejected mask 1     4 tokens | |n|o|</s>|",
    ]
    assert not (work / "checkpoints").exists()
    assert json.loads((work / "job.json").read_text())["metadata"]["name"] == "tiny"

    holder = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        for fresh in ((), ("--fresh",)):
            refused(dpo("run", job, "--work-dir", work, *fresh), "another `dpo run` is at work", str(work))
    finally:
        os.close(holder)
    assert (work / "prepared.json").is_file()


def test_the_mirror_belongs_to_one_work_folder(job: Path, tmp_path: Path):
    """A preview leaves it alone: nothing answers here. A run that starts over keeps the UID that owns it."""
    document, work = yaml.safe_load(job.read_text()), tmp_path / "work"
    document["spec"] |= {
        "access": {"s3": {"endpoint": "http://127.0.0.1:1"}},
        "checkpoint": {"mirror": {"to": "s3://checkpoints/run"}},
    }
    job.write_text(yaml.safe_dump(document))
    assert dpo("preview", job, "--work-dir", work).exit_code == 0
    before = json.loads((work / "job.json").read_text())["metadata"]["uid"]
    assert dpo("preview", job, "--work-dir", work, "--fresh").exit_code == 0
    assert json.loads((work / "job.json").read_text())["metadata"]["uid"] == before
    refused(dpo("run", job, "--work-dir", work, "--fresh", "--restore"), "--fresh", "--restore")
    assert (work / "prepared.json").is_file()


def asked(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "Ask"}, {"role": "assistant", "content": answer}]


# Rows of one source each, of which "yes" is the better answer; all are read without a mapping.
LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "arena": [{"winner": "model_b", "conversation_a": asked("no"), "conversation_b": asked("yes"), "turn": 1}],
    "arena55k": [{"prompt": '["Ask"]', "response_a": '["yes"]', "response_b": '["no"]', "winner_model_a": 1, "winner_model_b": 0}],
    "helpsteer2": [{"prompt": "Ask", "response_1": "yes", "response_2": "no", "preference_strength": -2}],
    "helpsteer2 rows": [
        {"prompt": "Ask", "response": "no", "helpfulness": 1, "correctness": 4},
        {"prompt": "Ask", "response": "yes", "helpfulness": 4, "correctness": 1},
    ],
    "nectar": [{"prompt": "Ask", "answers": [{"answer": "no", "rank": 5.0}, {"answer": "yes", "rank": 1.0}]}],
    "nemo": [{"context": asked("x")[:1], "completions": [
        {"rank": 0, "completion": asked("yes")[1:]}, {"rank": 1, "completion": asked("no")[1:]}]}],
    "distilabel": [{"instruction": "Ask", "generations": ["no", "yes"], "ratings": [2, 5]}],
    "ms-swift": [{"messages": asked("yes"), "rejected_response": "no"}],
    "json in text": [{"prompt": "Ask", "chosen": json.dumps(asked("yes")), "rejected": json.dumps(asked("no"))}],
    "splits": [{"train": [{"chosen": asked("yes"), "rejected": asked("no")}], "test": [{"chosen": asked("a"), "rejected": asked("b")}]}],
}  # fmt: skip


def test_layouts_without_a_mapping_through_preview(job: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    document = yaml.safe_load(job.read_text())
    sources = []
    for name, rows in LAYOUTS.items():
        path = tmp_path / f"{name.replace(' ', '-')}.json"
        path.write_text("\n".join(map(json.dumps, rows)))
        sources.append({"source": str(path)})
    document["spec"]["data"] = {"train": sources[0], "mixture": sources[1:]}
    document["spec"]["model"]["chatTemplate"] = CHATML
    job.write_text(yaml.safe_dump(document))
    done = dpo("preview", job, "--work-dir", tmp_path / "work")
    shown = capfd.readouterr()
    assert done.exit_code == 0, shown.err
    lines = [line for line in shown.out.splitlines() if line.startswith(("  chosen", "  rejected"))]
    assert [("yes" if "|y|e|s|" in line else "no" if "|n|o|" in line else line) for line in lines] == [
        "yes",
        "no",
    ] * len(LAYOUTS)


def test_other_settings_are_refused_and_an_earlier_version_resumes(
    job: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    work = tmp_path / "work"
    assert dpo("preview", job, "--work-dir", work).exit_code == 0
    written = json.loads((work / "job.json").read_text())
    # A version that did not know these settings yet.
    del written["spec"]["export"], written["spec"]["data"]["mixture"], written["spec"]["data"]["train"]["weight"]
    (work / "job.json").write_text(json.dumps(written))
    # What decides no number may change.
    document = yaml.safe_load(job.read_text())
    document["spec"] |= {"nodes": 2, "checkpoint": {"keepLast": 1}, "training": {"microBatchSize": 1}}
    job.write_text(yaml.safe_dump(document))
    assert dpo("preview", job, "--work-dir", work).exit_code == 0
    assert json.loads((work / "job.json").read_text())["spec"]["nodes"] == 2

    document["spec"]["training"]["seed"] = 1
    job.write_text(yaml.safe_dump(document))
    refused(dpo("preview", job, "--work-dir", work), "(spec.training.seed)", "--fresh")
    del document["spec"]["training"]["seed"]
    document["spec"]["method"] = {"name": "ipo"}
    job.write_text(yaml.safe_dump(document))
    refused(dpo("preview", job, "--work-dir", work), "spec.method", "--fresh")
