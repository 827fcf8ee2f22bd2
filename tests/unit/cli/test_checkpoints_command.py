"""`dpo checkpoints`: what it says of a folder, without torch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.cli.main import app
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.manifest import MANIFEST, read_manifest
from dpo_trainer.commands import listing
from dpo_trainer.commands.checkpoints import main
from tests.filesystems import server_is_gone
from tests.unit.trainer.checkpoints import a_checkpoint

pytestmark = pytest.mark.unit


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 2, 4 and 6, of which 4 was the best, and one that was being written."""
    root = tmp_path / "checkpoints"
    for step, cost in ((2, 0.7), (4, -0.5), (6, 0.6)):
        folder = a_checkpoint(root, step, selection=cost, attempt=step // 2)
        document = json.loads((folder / MANIFEST).read_text())
        # Before the first update there are no moments; these checkpoints have none.
        document.update(adam_step=0, time=1_700_000_000.0)
        document["state"].update(selection_metric="eval_reward_margin")
        (folder / MANIFEST).write_text(json.dumps(document))
    (root / layout.temporary_name(8, 3)).mkdir()
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    """Exit code, the document and what was said besides."""
    code = main(["checkpoints", "--json", *map(str, arguments)])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else {}, said.err


def as_command(work: Path, columns: int) -> subprocess.CompletedProcess[str]:
    """As `dpo checkpoints` runs it into a pipe, in a Python that has none of the trainer's heavy packages."""
    program = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'safetensors', 'transformers', 'deepspeed', 'peft', 'datasets'):\n"
        "    sys.modules[name] = None\n"
        "from dpo_trainer.__main__ import main\n"
        "sys.exit(main())\n"
    )
    environment = {**os.environ, "COLUMNS": str(columns)}
    argv = [sys.executable, "-c", program, "checkpoints", "--verify", "--", str(work)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("inner", ["", "checkpoints"])
def test_checkpoints_are_listed_newest_first(work: Path, capsys: pytest.CaptureFixture[str], inner: str):
    code, document, _ = listed(capsys, work / inner)
    lines = document["checkpoints"]
    assert code == ExitCode.OK
    assert [(line["step"], line["attempt"], line["world_size"]) for line in lines] == [(6, 3, 1), (4, 2, 1), (2, 1, 1)]
    assert [line["step"] for line in lines if line["last"]] == [6]
    # The manifest has costs, of which less is better; a margin is shown as it is.
    assert [(line["step"], line["metric"], line["evaluation"]) for line in lines if line["best"]] == [
        (4, "eval_reward_margin", 0.5)
    ]
    folder = work / "checkpoints" / "step-00000006"
    assert lines[0]["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert lines[0]["digest"] == read_manifest(folder)[1]
    assert not any(line["verified"] for line in lines)
    assert document["unfinished"] == ["step-00000008.attempt-3.tmp"]


def test_every_byte_is_read_on_demand(work: Path, capsys: pytest.CaptureFixture[str]):
    shard = work / "checkpoints" / "step-00000006" / layout.shard_name(0)
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    code, quick, _ = listed(capsys, work)
    assert (code, quick["checkpoints"][0]["problem"]) == (ExitCode.OK, "")
    code, thorough, _ = listed(capsys, work, "--verify")
    assert code == ExitCode.VOLUME_ERROR
    first, second, _ = thorough["checkpoints"]
    assert first["problem"] == "rank-00000.safetensors: the SHA-256 is not the one in the manifest"
    assert (second["verified"], second["last"]) == (True, True)


def test_a_bad_older_one_is_shown_and_is_no_failure(work: Path, capsys: pytest.CaptureFixture[str]):
    (work / "checkpoints" / "step-00000004" / layout.shard_name(0)).unlink()
    code, document, _ = listed(capsys, work)
    assert code == ExitCode.OK
    assert document["checkpoints"][1]["problem"] == "rank-00000.safetensors: No such file or directory"
    # What can't be used is not the best.
    assert [line["step"] for line in document["checkpoints"] if line["best"]] == [6]


def test_no_checkpoints_are_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for folder in (tmp_path, tmp_path / "nowhere"):
        code, _, said = listed(capsys, folder)
        assert code == ExitCode.INPUT_NOT_FOUND
        assert f"{folder}: expected checkpoints, folders such as step-00000050, found none" in said


def test_the_table_says_all_of_it_without_torch(work: Path):
    (work / "checkpoints" / "step-00000006" / MANIFEST).write_text("{}")
    long = work / "checkpoints" / "step-00000002" / MANIFEST
    document = json.loads(long.read_text())
    document["files"] = {"another-name-that-is-long" * 4: document["files"][layout.shard_name(0)]}
    long.write_text(json.dumps(document))
    done = as_command(work, columns=80)

    assert (done.returncode, done.stderr) == (ExitCode.VOLUME_ERROR, "")
    title, *rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert title == "step state committed (UTC) size attempt ranks loss eval"
    assert rows[0].startswith("6 refused – ")
    assert rows[1].startswith("4 verified 2023-11-14 22:13 ")
    assert rows[1].endswith(" 2 1 – 0.5000 last best")
    assert rows[2].startswith("2 refused – ")
    assert rows[3:] == [
        "step-00000006: refused: manifest.json: step: Field required",
        "step-00000002: refused: manifest.json: expected 1 shards, rank-00000.safetensors and so on, found 1: "
        + "another-name-that-is-long" * 4,
        "eval: eval_reward_margin",
        "unfinished: step-00000008.attempt-3.tmp",
    ]
    # The table itself fits a narrow terminal.
    assert max(map(len, done.stdout.splitlines()[:4])) <= 80


def test_a_checkpoint_that_goes_while_it_is_listed_is_left_out(work: Path, monkeypatch: pytest.MonkeyPatch):
    """As when the retention of a run in progress removes it between the listing and the look into it."""
    root = work / "checkpoints"
    found = layout.committed(root)
    shutil.rmtree(root / "step-00000002")
    monkeypatch.setattr(layout, "committed", lambda _: found)
    assert [line.step for line in listing.inspect(root, verify=True)] == [6, 4]


def test_a_folder_that_gives_no_answer_is_one_lines_problem(work: Path):
    root = work / "checkpoints"
    with server_is_gone(root / "step-00000006"):
        lines = listing.inspect(root, verify=True)
    assert [(line.name[-1], line.problem) for line in lines] == [
        ("6", "can't be read: Transport endpoint is not connected"), ("4", ""), ("2", ""),
    ]  # fmt: skip


def test_the_command_hands_its_arguments_and_the_exit_code_on(work: Path, capfd: pytest.CaptureFixture[str]):
    (work / "checkpoints" / "step-00000006" / MANIFEST).unlink()
    result = CliRunner().invoke(app, ["checkpoints", str(work), "--json", "--verify"])
    assert result.exit_code == ExitCode.VOLUME_ERROR
    newest, older, _ = json.loads(capfd.readouterr().out)["checkpoints"]
    assert (newest["problem"], older["verified"]) == ("manifest.json: No such file or directory", True)

    result = CliRunner().invoke(app, ["export", str(work), "--to", str(work / "made"), "--merge"])
    assert result.exit_code == ExitCode.INPUT_NOT_FOUND
    assert "expected the folder of a checkpoint" in capfd.readouterr().err


def test_a_folder_that_is_no_checkpoint_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export-checkpoint", str(tmp_path)]) == ExitCode.INPUT_NOT_FOUND
    assert f"{tmp_path}: expected the folder of a checkpoint" in capsys.readouterr().err
