"""What all tests share: where the real inputs are, that CI skips nothing, and that a busy machine fails nothing."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests import filesystems

REPOSITORY = Path(__file__).resolve().parents[1]

# Hypothesis fails an example that takes 200 ms; on a busy machine any does, and it says nothing about the code.
settings.register_profile("unhurried", settings(), deadline=None)
settings.load_profile("unhurried")


def pytest_configure(config: pytest.Config) -> None:
    """Mounts that end with the tests, and one thread for each process: the ranks of a test share two cores."""
    filesystems.take_own_mounts()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """With CI=true a skip is a failure: a tier that can't run must be seen."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real models and data; it is not part of the project, so elsewhere the tests that need it skip."""
    folder = Path(os.environ.get("DPO_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "models" / "stories260K" / "config.json").is_file():
        pytest.skip(f"no real inputs at {folder}; set DPO_SHARED")
    return folder
