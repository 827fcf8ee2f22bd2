"""What a run says about its first step."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from dpo_operator.api.diagnosis import label
from dpo_operator.api.method import Method
from dpo_operator.api.reports import CheckpointRef
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.checkpoint.loading import Restored
from dpo_trainer.engine.engine import Engine
from dpo_trainer.losses.objective import Objective
from dpo_trainer.model.attention import kernels
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.training.startup_checks import _kernel, check_first_step, log_restored
from tests.unit.trainer.checkpoints import loop_state

pytestmark = pytest.mark.unit


class Heard:
    """Collects what a run is told."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.warnings: list[str] = []
        self.margins: list[float] = []
        telemetry.warning = lambda code, _text, **_: self.warnings.append(code)  # type: ignore[method-assign]
        telemetry.initial_margin = self.margins.append  # type: ignore[method-assign]


@pytest.fixture
def telemetry(tmp_path) -> Iterator[Telemetry]:
    news = Telemetry("train", 1, WorkDir(tmp_path))
    yield news
    news.close()


def said(telemetry: Telemetry, method: dict, *, loss: float, margin: float, first_loss: float | None) -> Heard:
    heard = Heard(telemetry)
    metrics = {"loss": loss, "rewards/margins": margin}
    check_first_step(metrics, first_loss, Objective(Method.model_validate(method)), "fp32", telemetry)
    return heard


def test_a_rollback_warns_of_its_checkpoint_as_a_resume_does(telemetry: Telemetry):
    heard = Heard(telemetry)
    ref = CheckpointRef(step=5, attempt=1, digest="a" * 64, path="p", time=0)
    log_restored(Restored(ref, loop_state(5), {}), telemetry)
    assert heard.warnings == []
    log_restored(Restored(ref, loop_state(5), {}, refused=("step-7: x", "step-6: y"), doubt="step-5: z"), telemetry)
    assert heard.warnings == ["CheckpointRefused", "CheckpointRefused", "CheckpointNotRecorded"]


@pytest.mark.parametrize(("wanted", "code"), [("flex", "NoFlexAttention"), ("varlen", "NoVarlenAttention")])
def test_a_kernel_that_is_missing_has_a_code(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, wanted: str, code: str
):
    # Without a GPU no kernel is asked for.
    monkeypatch.setattr(kernels, "preferred", lambda *_: wanted)
    world = SimpleNamespace(device=torch.device("cuda"))
    module = SimpleNamespace(kernel_problem=lambda *_: "no kernel")
    engine = cast(Engine, SimpleNamespace(world=world, module=module, any_rank=bool))
    spec = DPOJobSpec.model_validate({"model": {"name": "org/m"}, "data": {"train": {"source": "org/d"}}})
    heard = Heard(telemetry)
    assert _kernel(engine, spec, telemetry) == "sdpa"
    assert [label(each) for each in heard.warnings] == [code]


def test_a_margin_other_than_0_is_warned_of(telemetry: Telemetry):
    heard = said(telemetry, {"name": "dpo"}, loss=math.log(2), margin=0.3, first_loss=math.log(2))
    assert heard.warnings == ["FirstStepMargin"]


def test_a_loss_other_than_the_methods_own_is_warned_of(telemetry: Telemetry):
    assert said(telemetry, {"name": "ipo"}, loss=24.0, margin=0.0, first_loss=25.0).warnings == ["FirstStepLoss"]


def test_rewards_without_a_reference_start_anywhere(telemetry: Telemetry):
    heard = said(telemetry, {"name": "simpo", "plus": [{"name": "dpo"}]}, loss=1.7, margin=-0.05, first_loss=1.7)
    assert heard.warnings == []
    assert heard.margins == []


def test_a_step_without_any_rejected_answer_has_no_margin_to_check(telemetry: Telemetry):
    assert said(telemetry, {"name": "kto"}, loss=0.5, margin=math.nan, first_loss=0.5).warnings == []
