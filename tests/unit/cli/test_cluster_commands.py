"""`kubectl dpo suspend|resume|retry`: what they ask kubectl for."""

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dpo_operator.api import names
from dpo_operator.cli.main import app


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a kubectl that writes its arguments down and answers with a state."""
    script = tmp_path / "kubectl"
    script.write_text(
        "#!/bin/sh\n"
        f'for a in "$@"; do printf "%s\\n" "$a"; done >> {tmp_path}/calls\n'
        f'echo "{{\\"status\\": {{\\"state\\": \\"$(cat {tmp_path}/state)\\"}}}}"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def merged(kubectl: Path) -> dict[str, object]:
    """The patch that was sent."""
    (patch,) = [a for a in (kubectl / "calls").read_text().splitlines() if a.startswith("--patch=")]
    found: dict[str, object] = json.loads(patch.removeprefix("--patch="))
    return found


@pytest.mark.parametrize(
    ("command", "state", "suspend"), [("suspend", "Training", True), ("resume", "Suspended", False)]
)
def test_suspend_and_resume_set_the_field(kubectl: Path, command: str, state: str, suspend: bool) -> None:
    (kubectl / "state").write_text(state)
    options = ["-n", "team", "--context", "here", "--kubeconfig", "/some/file"]
    assert CliRunner().invoke(app, [command, "pairs", *options]).exit_code == 0
    assert merged(kubectl) == {"spec": {"suspend": suspend}}
    calls = (kubectl / "calls").read_text().splitlines()
    assert calls[:5] == [
        "--namespace=team",
        "--context=here",
        "--kubeconfig=/some/file",
        "get",
        "dpojobs.dpo-operator.dev",
    ]


@pytest.mark.parametrize("command", ["resume", "retry"])
def test_a_failed_job_gets_a_new_token(kubectl: Path, command: str) -> None:
    (kubectl / "state").write_text("Failed")
    assert CliRunner().invoke(app, [command, "pairs"]).exit_code == 0
    body = merged(kubectl)
    assert body["spec"] == {"suspend": False}
    assert list(body["metadata"]["annotations"]) == [names.ANNOTATION_RETRY]  # type: ignore[index]


@pytest.mark.parametrize(
    ("command", "state", "said"),
    [
        ("retry", "Training", "only a failed job"),
        ("resume", "Complete", "nothing to resume"),
        ("suspend", "Failed", "nothing is running"),
    ],
)
def test_what_makes_no_sense_is_refused(kubectl: Path, command: str, state: str, said: str) -> None:
    (kubectl / "state").write_text(state)
    result = CliRunner().invoke(app, [command, "pairs"])
    assert result.exit_code == 1
    assert said in result.output
    assert "patch" not in (kubectl / "calls").read_text().split()


def test_a_name_is_no_option(kubectl: Path) -> None:
    result = CliRunner().invoke(app, ["suspend", "--", "--all"])
    assert result.exit_code == 1
    assert "is not a name of a DPOJob" in result.output
    assert not (kubectl / "calls").exists()


def test_without_kubectl_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(app, ["retry", "pairs"])
    assert result.exit_code == 1
    assert "kubectl can't be started" in result.output
