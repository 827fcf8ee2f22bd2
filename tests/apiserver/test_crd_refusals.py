"""What a user does wrong is refused by the API server, with the field and what is allowed."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.apiserver.client import Requests
from tests.apiserver.mutants import a_job
from tests.cluster.rig.binaries import binary
from tests.cluster.rig.control_plane import ControlPlane
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.apiserver

BAD = sorted((REPOSITORY / "examples" / "bad").glob("*.yaml"))


def expectations(file: Path) -> list[str]:
    """Parts of the message that the file's header announces."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("# expect: ") for line in lines if line.startswith("# expect: ")]


def kubectl(plane: ControlPlane, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(binary("kubectl")), f"--kubeconfig={plane.kubeconfig}", *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def test_there_are_many_ways_to_be_wrong() -> None:
    assert len(BAD) >= 20


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_a_wrong_job_is_refused_with_reasons(dpojobs: Requests, control_plane: ControlPlane, file: Path) -> None:
    expected = expectations(file)
    assert expected, f"{file} says nothing of what is expected"
    result = kubectl(control_plane, "apply", "--dry-run=server", "-f", str(file))
    assert result.returncode != 0, result.stdout
    for part in expected:
        assert part in result.stderr


def test_what_is_wrong_is_all_that_is_wrong(dpojobs: Requests, control_plane: ControlPlane) -> None:
    """Negative control: the same kubectl accepts a right job."""
    result = kubectl(control_plane, "apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(a_job()))
    assert result.returncode == 0, result.stderr


def test_every_example_is_accepted(dpojobs: Requests, control_plane: ControlPlane) -> None:
    folders = [BAD[0].parent.parent / name for name in ("jobs", "methods", "rounds", "sweep", "quickstart")]
    files = [file for folder in folders for file in folder.glob("*.yaml")]
    words = [word for file in files for word in ("-f", str(file))]
    result = kubectl(control_plane, "apply", "--dry-run=server", "--validate=strict", *words)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == len(files) > 20
