"""`dpo validate`: errors, and notes on what a cluster's administrator decides."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from dpo_operator.api import names
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.cli.main import app

pytestmark = pytest.mark.unit


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
