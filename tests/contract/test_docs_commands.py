"""The commands on the pages work: each is run for real where that is possible, else held against the program's own help.

A command that no rule below covers fails. NOT_RUN lists what is not run, with the reason.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from dpo_operator.api import names
from dpo_operator.cli.main import app
from tests.cluster.rig.binaries import binary
from tests.conftest import REPOSITORY
from tests.contract.chart import KUBERNETES, helm
from tests.contract.pages import COMMANDS, DPO, HELM, KUBECTL, MAKE, PAGES, PLUGIN, named
from tests.unit.trainer.tiny import CONFIG, tiny_model, write_jsonl

pytestmark = pytest.mark.contract

SCRIPTS = Path(sys.executable).parent
JOB, RUN, STEPS = "helpful", "runs/helpful", 50

# What is not run, by its first words, and why.
NOT_RUN = {
    ("docker", "build"): "takes minutes; the cluster tier builds both images from the same files",
    ("docker", "push"): "needs a registry",
    ("cosign",): "needs a registry and an identity",
    (
        "dpo",
        "export",
        "runs/helpful/checkpoints/step-00000050",
    ): "takes 10 s; the page's other form does the same and more",
    ("pipx", "install"): "needs a package index; the entry points are looked at below",
    ("uv", "tool", "install"): "needs a package index; the entry points are looked at below",
    ("uv", "venv"): "makes the environment of vLLM, of 6 GB: make test-vllm installs one, and runs dpo run with it",
    ("uv", "pip", "sync"): "as above; the list that it names is looked at below",
    ("DPO_GENERATE_PYTHON=~/vllm/bin/python",): "as above",
    ("python3", "-m", "pip", "install"): "these tests run in such an environment; its entry points are looked at below",
}
RUN_HERE = [command for command in DPO if command not in NOT_RUN]


def test_each_command_is_covered() -> None:
    covered = {*RUN_HERE, *MAKE, *HELM, *PLUGIN, *KUBECTL}
    left = [command for command in COMMANDS if command not in covered]
    assert [" ".join(c) for c in left if not any(c[: len(start)] == start for start in NOT_RUN)] == []
    unused = [start for start in NOT_RUN if not any(c[: len(start)] == start for c in left)]
    assert unused == []
    assert min(map(len, (DPO, MAKE, HELM, PLUGIN, KUBECTL))) > 0


def test_what_is_not_run_names_files_and_extras_that_exist() -> None:
    left = [command for command in COMMANDS if any(command[: len(start)] == start for start in NOT_RUN)]
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in left:
        if command[:2] == ("docker", "build"):
            file = command[command.index("-f") + 1] if "-f" in command else "Dockerfile"
            assert (REPOSITORY / file).is_file()
        if command[:3] == ("uv", "pip", "sync"):
            assert (REPOSITORY / command[-1]).is_file()
        for wanted in re.findall(r"\[([\w,]+)\]", command[-1]):
            assert set(wanted.split(",")) <= set(extras)
        if command[0] == "dpo":
            assert CliRunner().invoke(app, [*command[1:], "--help"]).exit_code == 0


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of a reader who followed the pages: a job file, its run, and a volume with the run of a cluster."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("project")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "max_position_embeddings": 256}
    tiny_model(folder / "model", config=size)
    for weights in (folder / "model").glob("*.safetensors*"):
        weights.unlink()
    vocabulary = json.loads((folder / "model" / "config.json").read_text())["vocab_size"]
    shape = LlamaConfig(**{**CONFIG, **size, "vocab_size": vocabulary, "initializer_range": 0.2})
    LlamaForCausalLM(shape).save_pretrained(folder / "model")
    rows = [{"prompt": f"Q{i}:", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(8)]
    write_jsonl(folder / "pairs.jsonl", rows)
    spec: dict[str, Any] = {
        "model": {"name": "./model"},
        "data": {"train": {"source": "./pairs.jsonl"}, "maxLength": 32},
        "adapter": {"type": "lora", "targetModules": ["q_proj", "v_proj"]},
        "training": {"globalBatchSize": 2, "maxSteps": STEPS, "learningRate": 1e-2, "precision": "fp32"},
        "checkpoint": {"everySteps": STEPS},
        "nodes": 1,
        "gpusPerNode": 1,
    }
    document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": JOB}, "spec": spec}
    (folder / "dpojob.yaml").write_text(yaml.safe_dump(document))
    said(("dpo", "run", "dpojob.yaml"), folder)
    shutil.copytree(folder / RUN, folder / "volume" / "JOB-UID")
    shutil.copyfile(folder / RUN / "job.json", folder / "job.json")
    return folder


def said(command: tuple[str, ...], folder: Path) -> str:
    """Run a command as a reader does; what it printed."""
    argv = [str(SCRIPTS / command[0]), *command[1:]]
    done = subprocess.run(
        argv, cwd=folder, capture_output=True, text=True, timeout=800, env={**os.environ, "COLUMNS": "120"}
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


# What each command must have printed or made, where that is one thing for all of its forms.
PRINTED = {
    "validate": "DPOJob helpful is valid",
    "preview": "Data report",
    "run": "report",
    "report": "reward margin",
    "why": "is complete",
    "checkpoints": str(STEPS),
}


@pytest.mark.parametrize("command", RUN_HERE, ids=" ".join)
def test_a_dpo_command_runs(command: tuple[str, ...], project: Path) -> None:
    if command == ("dpo", "run", "dpojob.yaml"):  # the fixture ran it
        assert (project / RUN / "export" / "adapter_model.safetensors").is_file()
        assert (project / RUN / "report" / "report.png").is_file()
        return
    text = said(command, project)
    assert PRINTED.get(command[1], "") in text
    if command[1] == "export":
        target = command[command.index("--to") + 1] if "--to" in command else f"{RUN}/export-step-{STEPS:08}"
        assert (project / target / "dpo_provenance.json").is_file()
        assert (project / target / "merged" / "model.safetensors").is_file() == ("--merge" in command)
    if "--json" in command:
        json.loads(text[text.index("{") :])


@pytest.mark.parametrize("command", MAKE, ids=" ".join)
def test_a_make_target_exists(command: tuple[str, ...]) -> None:
    done = subprocess.run(["make", "-n", *command[1:]], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", HELM, ids=" ".join)
def test_helm_renders_the_chart_with_these_values(command: tuple[str, ...]) -> None:
    assert command[1] in ("install", "upgrade")
    arguments = [
        str(REPOSITORY / word) if word.startswith("charts/") else word
        for word in command[2:]
        if word != "--reuse-values"
    ]
    rendered = helm("template", *arguments, "--kube-version", KUBERNETES)
    assert "kind: Deployment" in rendered
    if any("monitoring.trainer.enabled=true" in word for word in command):
        assert "kind: PodMonitor" in rendered


@pytest.mark.parametrize("command", PLUGIN, ids=" ".join)
def test_a_command_of_the_plugin_is_known_with_its_options(command: tuple[str, ...]) -> None:
    """kubectl runs kubectl-dpo for `kubectl dpo`. The tier apiserver runs these commands against an API server."""
    plugin = SCRIPTS / "kubectl-dpo"
    assert os.access(plugin, os.X_OK)
    done = CliRunner().invoke(app, [*command[2:], "--help"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("command", KUBECTL, ids=" ".join)
def test_kubectl_knows_the_options(command: tuple[str, ...]) -> None:
    """Without a cluster kubectl can't say more: even a dry run asks the API server for its resources. The tier apiserver does."""
    done = subprocess.run([str(binary("kubectl")), command[1], "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    common = subprocess.run([str(binary("kubectl")), "options"], capture_output=True, text=True).stdout
    for word in command[2:]:
        if word.startswith("-"):
            option = word.split("=")[0]
            assert re.search(rf"^ +(-\w, )?{option}[=, ]", done.stdout + common, re.MULTILINE), option
    resources = [word for word in command[2:] if word.split(".")[0].lower() in (names.KIND.lower(), names.PLURAL)]
    assert resources or command[1] in ("apply", "create", "get", "label", "logs", "patch"), command


def test_each_command_is_on_the_page_of_commands() -> None:
    """And each one that the page's table names is there."""
    page = (REPOSITORY / "docs" / "commands.md").read_text()
    named_there = {
        cell.split()[0]
        for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
        for cell in re.findall(r"`([^`]+)`", row)
    }
    assert named_there == set(get_command(app).commands)  # type: ignore[attr-defined]


def test_kubectl_finds_the_completion_of_the_plugin() -> None:
    done = subprocess.run([str(SCRIPTS / "kubectl_complete-dpo"), "sta"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["status", ":4"]


INLINE = sorted({text for page in PAGES for text in named(page) if re.match(r"(dpo|kubectl dpo|make) [a-z]", text)})


@pytest.mark.parametrize("text", INLINE)
def test_a_command_within_a_sentence_is_known(text: str) -> None:
    words = shlex.split(text)
    if words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=REPOSITORY, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return
    done_ = CliRunner().invoke(app, [*words[2 if words[0] == "kubectl" else 1 :], "--help"])
    assert done_.exit_code == 0, done_.output


ROOMS = [REPOSITORY, REPOSITORY / "trainer_image" / "dpo_trainer", REPOSITORY / "operator" / "dpo_operator"]
TOP = "benchmarks|charts|crds|docs|examples|operator|requirements|tests|trainer_image"
PATHS = sorted(
    {
        (str(page.relative_to(REPOSITORY)), text.split("::")[0])
        for page in PAGES
        for text in named(page)
        if re.fullmatch(rf"(({TOP})/[\w./-]+|[\w/]+\.py)(::\w+)?", text)
    }
)


@pytest.mark.parametrize(("page", "path"), PATHS)
def test_a_path_that_a_page_names_exists(page: str, path: str) -> None:
    """Relative to the repository, to the page's folder, or for modules to the trainer or the operator."""
    assert any((room / path).exists() for room in (*ROOMS, (REPOSITORY / page).parent)), f"{page}: {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_a_picture_that_a_page_shows_exists(page: Path) -> None:
    for source in re.findall(r'<img [^>]*src="([^"]+)"', page.read_text()):
        assert (page.parent / source).is_file(), source
        assert (page.parent / source).stat().st_size < 300_000
