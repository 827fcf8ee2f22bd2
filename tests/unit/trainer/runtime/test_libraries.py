"""Library warnings that are filtered from the log of every command."""

import logging
import warnings
from pathlib import Path

import pytest

from dpo_trainer import phases
from dpo_trainer.commands import checkpoints

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("kind", ["phase", "command"])
def test_library_warnings_that_users_cannot_act_on_are_filtered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    noisy = logging.getLogger("bitsandbytes")
    monkeypatch.setattr(noisy, "level", logging.NOTSET)
    noisy.manager._clear_cache()  # type: ignore[attr-defined]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if kind == "phase":
            phases.run("export", tmp_path / "job.json", tmp_path)
        else:
            checkpoints.main(["export-checkpoint", str(tmp_path)])
        warnings.warn("`is_gradient_checkpointing` is deprecated and will go", FutureWarning, stacklevel=1)
        warnings.warn("another", FutureWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["another"]
    assert not logging.getLogger("bitsandbytes.cextension").isEnabledFor(logging.WARNING)
