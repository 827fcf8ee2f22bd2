"""The rig builds with the machine's Go where that is new enough, and else with one of its own."""

from pathlib import Path

import pytest

from tests.cluster.rig import gotoolchain
from tests.cluster.rig.layout import GO_MODULES

pytestmark = pytest.mark.unit


def script(folder: Path, body: str) -> Path:
    file = folder / "go"
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    return file


@pytest.mark.parametrize(
    ("said", "version"),
    [("go version go1.19.8 linux/amd64", (1, 19, 8)), ("go version go1.26 linux/arm64", (1, 26)), ("what?", (0,))],
)
def test_the_version_of_a_go_command(tmp_path: Path, said: str, version: tuple[int, ...]):
    assert gotoolchain.version_of(script(tmp_path, f"echo {said}")) == version


def test_a_command_that_is_not_there_has_no_version(tmp_path: Path):
    assert gotoolchain.version_of(tmp_path / "go") == (0,)


def test_the_pinned_go_is_as_new_as_every_go_mod_asks():
    wanted = []
    for file in GO_MODULES.glob("*/go.mod"):
        line = next(line for line in file.read_text().splitlines() if line.startswith("go "))
        wanted.append(tuple(int(part) for part in line.split()[1].split("."))[:2])
    assert max(wanted) == gotoolchain.NEEDED
    assert tuple(int(part) for part in gotoolchain.VERSION.split("."))[:2] >= gotoolchain.NEEDED


@pytest.mark.parametrize("own", ["", "echo go version go1.19.8 linux/amd64"])
def test_an_old_go_or_none_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str):
    """With the real package, which stays in the cache."""
    if own:
        script(tmp_path, own)
    monkeypatch.setenv("PATH", f"{tmp_path}:/nowhere")
    gotoolchain.go.cache_clear()
    try:
        found = gotoolchain.go()
    finally:
        gotoolchain.go.cache_clear()
    assert found.parent != tmp_path
    assert gotoolchain.version_of(found) >= gotoolchain.NEEDED
