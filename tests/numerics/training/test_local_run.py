"""`dpo run` with a trainer that fails."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dpo_operator.api import names
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.cli.main import app
from tests.unit.trainer.tiny import tiny_model, write_jsonl

pytestmark = pytest.mark.numerics


def test_a_missing_gpu_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    tiny_model(tmp_path / "model")
    write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "Ask:", "chosen": " yes", "rejected": " no"}])
    spec = {
        "model": {"name": "./model"}, "data": {"train": {"source": "./pairs.jsonl"}}, "training": {"device": "cuda"},
    }  # fmt: skip
    document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "tiny"}, "spec": spec}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(document))
    done = CliRunner().invoke(app, ["run", str(tmp_path / "job.yaml"), "--work-dir", str(tmp_path / "work")])

    assert done.exit_code == ExitCode.NO_ACCELERATOR
    assert done.stderr.count("train ended with NoAccelerator (exit code 80)") == 1
    assert "attempt 2" not in done.stderr
    assert (done.stderr + capfd.readouterr().err).count("expected a GPU") == 1
