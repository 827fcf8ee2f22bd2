"""A loss or a gradient that is not finite changes no weight and reaches no checkpoint, and the run goes on by training.nonFinite."""

import os
from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.full import open_newest
from tests.numerics.interruptions import STEPS, curve, folder, job, train_until
from tests.numerics.ranks import RankFailed, on_ranks

pytestmark = [pytest.mark.numerics, pytest.mark.fault(38)]

LINES = list(range(1, STEPS + 1))


def test_a_bad_step_is_skipped_and_a_resumed_run_skips_it_too(tmp_path: Path):
    document = _document("skip")
    straight, broken = folder(tmp_path / "straight"), folder(tmp_path / "broken")
    first, _ = on_ranks(2, _poisoned, document, straight.root, 1, {3: "gradient", 5: "loss"})
    assert first["status"] == "Succeeded"
    found = curve(straight.root)

    assert [line["step"] for line in found] == LINES
    assert [line["step"] for line in found if line["loss"] is None] == [3, 5]
    # Position in the data and learning rate move on; what was trained on does not grow.
    assert found[2]["num_tokens"] == found[1]["num_tokens"] < found[3]["num_tokens"]
    manifest = open_newest(straight.checkpoints)[0].manifest
    assert (manifest.state.skipped, manifest.step, manifest.adam_step) == ((3, 5), 6, 4)

    # Stopped at the skipped step: that checkpoint says so, and the rest is the same to the last bit.
    first, _ = on_ranks(2, _poisoned, document, broken.root, 1, {3: "gradient", 5: "loss"}, 2)
    assert (first["status"], first["checkpoint"]["step"]) == ("Stopped", 3)
    on_ranks(2, _poisoned, document, broken.root, 2, {3: "gradient", 5: "loss"})
    assert curve(broken.root) == found


def test_a_rollback_resumes_from_the_checkpoint_and_skips_the_step(tmp_path: Path):
    skipped, rolled = folder(tmp_path / "skipped"), folder(tmp_path / "rolled")
    on_ranks(2, _poisoned, _document("skip"), skipped.root, 1, {4: "gradient"})
    first, second = on_ranks(2, _poisoned, _document("rollback"), rolled.root, 1, {4: "gradient"})

    assert first["codes"] == ["NonFinite", "RolledBack"]
    # After step 2's checkpoint come 3 once more, not 4, and the rest.
    assert first["steps"] == second["steps"] == [1, 2, 3, 3, 4, 5, 6]
    # Weights were good, so going back changes nothing.
    assert curve(rolled.root) == curve(skipped.root)
    assert open_newest(rolled.checkpoints)[0].state.skipped == (4,)


def test_a_process_that_dies_after_a_rollback_does_not_forget_the_step(tmp_path: Path):
    work, document = folder(tmp_path), _document("rollback", max=1)
    # Dies in step 3, which comes again after the rollback from step 4 to the checkpoint of step 2.
    with pytest.raises(RankFailed):
        on_ranks(2, _poisoned, document, work.root, 1, {4: "gradient"}, None, True)
    assert [step for step, _ in layout.committed(work.checkpoints)] == [2]

    # The next attempt skips step 4 without computing it, and a second bad step is one too many.
    with pytest.raises(RankFailed, match=r"Step 5: .* allows 1 of them, and there were steps 4 before"):
        on_ranks(2, _poisoned, document, work.root, 2, {4: "gradient", 5: "gradient"})


def test_without_a_checkpoint_a_rollback_skips(tmp_path: Path):
    work = folder(tmp_path)
    first, _ = on_ranks(2, _poisoned, _document("rollback"), work.root, 1, {2: "loss"})

    assert (first["status"], first["codes"]) == ("Succeeded", ["NonFinite"])
    assert first["steps"] == LINES


@pytest.mark.parametrize(
    ("action", "most", "poisons", "message", "kept"),
    [
        ("fail", 3, {3: "gradient"}, r"Step 3: expected finite numbers, found NaN or infinity in the gradient", [2]),
        (
            "skip",
            1,
            {2: "loss", 5: "loss"},
            r"Step 5: .* the loss of \d of 2 pairs.* there were steps 2 before",
            [4, 2],
        ),
    ],
    ids=["at once", "after too many"],
)
def test_a_bad_step_fails_the_run_with_a_reason_and_keeps_checkpoints(
    tmp_path: Path, action: str, most: int, poisons: dict[int, str], message: str, kept: list[int]
):
    work = folder(tmp_path)
    with pytest.raises(RankFailed, match=message):
        on_ranks(2, _poisoned, _document(action, max=most), work.root, 1, poisons)

    assert [step for step, _ in layout.committed(work.checkpoints)] == kept
    assert layout.temporary_folders(work.checkpoints) == []


def _document(action: str, **rule: int) -> dict[str, Any]:
    return job(every_steps=2, nonFinite={"action": action, **rule})


def _poisoned(
    document: dict[str, Any],
    root: Path,
    attempt: int,
    poisons: dict[int, str],
    stop_after: int | None = None,
    dies: bool = False,
) -> dict[str, Any]:
    """Train with an infinity in rank 1's loss or gradient of some steps, each time that they are computed.

    dies: in the first step that comes a second time.
    """
    import torch

    from dpo_trainer.batches import sampler
    from dpo_trainer.engine.engine import Engine
    from dpo_trainer.telemetry import Telemetry
    from dpo_trainer.training import step

    now, seen, codes = 0, [], []
    plan_step, sums, backward, told, warned = (
        sampler.StepPlan.step, step.sums, Engine.backward, Telemetry.step, Telemetry.warning,
    )  # fmt: skip
    mine = os.environ["RANK"] == "1"

    def which(plan: Any, number: int) -> Any:
        nonlocal now
        if dies and number <= now:
            raise MemoryError
        now = number
        return plan_step(plan, number)

    def spoilt_sums(objective: Any, logps: Any, loss: torch.Tensor, *more: Any) -> Any:
        return sums(objective, logps, loss + torch.inf if mine and poisons.get(now) == "loss" else loss, *more)

    def spoilt_backward(engine: Engine, loss: torch.Tensor, *, last: bool) -> None:
        backward(engine, loss * torch.inf if mine and poisons.get(now) == "gradient" else loss, last=last)

    def step_told(telemetry: Telemetry, number: int, **news: Any) -> None:
        seen.append(number)
        told(telemetry, number, **news)

    def warning_told(telemetry: Telemetry, code: str, text: str, *, once: bool = False) -> None:
        if telemetry.rank == 0:
            codes.append(code)
        warned(telemetry, code, text, once=once)

    sampler.StepPlan.step, step.sums, Engine.backward = which, spoilt_sums, spoilt_backward  # type: ignore[method-assign,assignment]
    Telemetry.step, Telemetry.warning = step_told, warning_told  # type: ignore[method-assign,assignment]
    ended = train_until(document, root, attempt, stop_after=stop_after)
    return ended | {"steps": seen, "codes": codes}
