"""One object store for all tests of this folder."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import tied
from tests.s3 import KEY, SECRET, Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real object store that speaks S3."""
    with serving(tmp_path_factory.mktemp("s3")) as found:
        yield found


@dataclass
class Phases:
    """Phases of one job, run as the operator's containers run them: with the job file, and the Secret as mounted files."""

    root: Path
    keys: dict[str, str] = field(default_factory=lambda: {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET})
    output: str = ""

    @property
    def work(self) -> Path:
        return self.root / "work"

    def start(self, phase: str, spec: dict[str, Any], **environment: str) -> "subprocess.Popen[str]":
        """Start a phase."""
        secret = self.root / "secret"
        secret.mkdir(exist_ok=True)
        self.work.mkdir(exist_ok=True)
        for name, value in self.keys.items():
            (secret / name).write_text(f"{value}\n")
        job = {"apiVersion": "dpo-operator.dev/v1alpha1", "kind": "DPOJob", "metadata": {"name": "j"}, "spec": spec}
        (self.root / "job.json").write_text(json.dumps(job))
        own = {"DPO_CREDENTIALS_DIR": str(secret), "DPO_METRICS_PORT": "0", "DPO_BIND_ADDRESS": "127.0.0.1"}
        argv = [
            sys.executable,
            "-m",
            "dpo_trainer",
            phase,
            "--job-file",
            self.root / "job.json",
            "--work-dir",
            self.work,
        ]
        return tied.popen(
            argv,
            env={**os.environ, **own, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, phase: str, spec: dict[str, Any], **environment: str) -> int:
        """Run a phase to its end; its exit code."""
        process = self.start(phase, spec, **environment)
        self.output = process.communicate(timeout=300)[0]
        return process.returncode

    def termination(self, phase: str) -> dict[str, Any]:
        """The termination message of a phase's first attempt."""
        return json.loads((self.work / f"termination-{phase}-1-0.json").read_text())

    def leaks(self) -> list[str]:
        """Where the secret key is found: in what was printed, or in a file that the job left."""
        found = ["output"] if SECRET in self.output else []
        files = (path for path in self.work.rglob("*") if path.is_file())
        return found + [str(path) for path in files if SECRET.encode() in path.read_bytes()]


@pytest.fixture
def phases(tmp_path: Path) -> Phases:
    """Phases of a job in a new folder."""
    return Phases(tmp_path)
