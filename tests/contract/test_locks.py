"""The images and the environment are built from pins, and the pins are those of what pyproject.toml asks for."""

import re
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


def test_the_tool_that_lists_packages_is_pinned() -> None:
    assert len(pins("sbom")["cyclonedx-bom"]) == 1


def test_the_resolver_is_the_one_that_the_makefile_names() -> None:
    version = re.search(r"^UV_VERSION := (\S+)$", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert pins("build") == {"uv": [version[1]]}
