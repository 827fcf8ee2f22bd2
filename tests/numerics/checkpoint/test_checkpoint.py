"""After a kill a run resumes from the newest intact checkpoint and equals an uninterrupted run."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.checkpoint import layout, verification
from dpo_trainer.checkpoint.folder import CheckpointFolder
from dpo_trainer.checkpoint.full import open_newest
from dpo_trainer.checkpoint.manifest import read_manifest
from tests.filesystems import fill, small_file_system
from tests.numerics.interruptions import STEPS, beginning, curve, folder, job, train_until
from tests.numerics.ranks import RankFailed, on_ranks

pytestmark = pytest.mark.numerics

DAMAGES = ("truncated", "flipped bit", "missing", "a link")
SETTINGS = {
    "all weights, fp32": {"precision": "fp32"},
    "all weights, bf16": {"precision": "bf16"},
    "adapters with dropout, fp32": {"precision": "fp32", "lora": True},
    "adapters with dropout, bf16": {"precision": "bf16", "lora": True},
}
# CI has both precisions and both kinds of weights once.
EXHAUSTIVE = ("all weights, bf16", "adapters with dropout, fp32")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with checkpoints of steps 2 and 4, killed after step 5; tests resume copies of it."""
    root = tmp_path_factory.mktemp("killed")
    folder(root)
    with pytest.raises(RankFailed):
        on_ranks(2, _killed, job(every_steps=2), root)
    return root


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(settings, id=name, marks=[pytest.mark.exhaustive] if name in EXHAUSTIVE else [])
        for name, settings in SETTINGS.items()
    ],
)
def test_after_a_killed_rank_every_later_step_is_bit_equal(tmp_path: Path, settings: dict[str, Any]):
    document = job(every_steps=2, **settings)
    folder(tmp_path / "whole")
    on_ranks(2, _whole, document, tmp_path / "whole")

    folder(tmp_path / "killed")
    with pytest.raises(RankFailed):
        on_ranks(2, _killed, document, tmp_path / "killed")
    first, _ = on_ranks(2, _resumed, document, tmp_path / "killed")

    # Killed after step 5, the run resumes from the checkpoint of step 4.
    assert first["resumed_from"] == 4
    assert [line["step"] for line in curve(tmp_path / "killed")] == list(range(1, STEPS + 1))
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    [begun] = beginning(tmp_path / "killed")
    assert [begun] == beginning(tmp_path / "whole")
    assert begun["eval_surprise/pairs"] == 5


@pytest.mark.parametrize(
    "lora",
    [pytest.param(False, id="all weights"), pytest.param(True, id="adapters", marks=pytest.mark.exhaustive)],
)
def test_two_ranks_then_one_then_four_train_as_two(tmp_path: Path, lora: bool):
    document = job(every_steps=1000, lora=lora)
    document["spec"]["training"]["globalBatchSize"] = 4
    if lora:
        document["spec"]["adapter"]["dropout"] = 0.0  # other ranks draw other numbers
    whole, resized = folder(tmp_path / "whole").root, folder(tmp_path / "resized").root
    on_ranks(2, train_until, document, whole, 1)

    # Asked to stop after a step, a run stops after the next one.
    on_ranks(2, _stopped_after, document, resized, 1, 1)
    [second] = on_ranks(1, _stopped_after, document, resized, 2, 3)
    third, *_ = on_ranks(4, train_until, document, resized, 3)

    assert (second["resumed_from"], third["resumed_from"]) == (2, 4)
    assert (third["status"], [line["step"] for line in curve(resized)]) == ("Succeeded", list(range(1, STEPS + 1)))
    for ours, theirs in zip(curve(resized), curve(whole), strict=True):
        # Sums over ranks are made in another order, so the last bits differ.
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_signals_in_the_middle_of_saves_lose_no_step(tmp_path: Path):
    """The first signal during a save in the background, the second during the save that the first one causes."""
    document = job(every_steps=3)
    whole, broken = folder(tmp_path / "whole").root, folder(tmp_path / "broken").root
    on_ranks(2, train_until, document, whole, 1)

    first, _ = on_ranks(2, _terminated_in_saves, document, broken, 1)
    last = curve(broken)[-1]["step"]
    assert (first["status"], first["checkpoint"]["step"]) == ("Stopped", last)
    assert last in (4, 5)  # the step that was being computed, or the one that began meanwhile
    # Both checkpoints are intact.
    assert open_newest(tmp_path / "broken" / "checkpoints")[1] == []
    assert [step for step, _ in layout.committed(tmp_path / "broken" / "checkpoints")] == [last, 3]

    second, _ = on_ranks(2, train_until, document, broken, 2)
    assert second["resumed_from"] == last
    assert curve(broken) == curve(whole)


@pytest.fixture(scope="module")
def refusals(killed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, dict[str, Any]]]:
    """Damage -> what the reason must contain, and what two ranks loaded; one world loads all of them."""
    base = tmp_path_factory.mktemp("damaged")
    expected = {}
    for damage in DAMAGES:
        shutil.copytree(killed, base / damage)
        expected[damage] = _damage(base / damage / "checkpoints" / "step-00000004" / "rank-00001.safetensors", damage)
    first, second = on_ranks(2, _refused, job(every_steps=2), [base / damage for damage in DAMAGES])
    assert first == second
    return {damage: (expected[damage], found) for damage, found in zip(DAMAGES, first, strict=True)}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_the_reason(refusals: dict[str, Any], damage: str):
    expected, found = refusals[damage]

    assert found["step"] == 2
    assert len(found["refused"]) == 1
    assert "step-00000004: rank-00001.safetensors: " in found["refused"][0]
    assert expected in found["refused"][0]


def test_only_damaged_checkpoints_do_not_restart_training_from_step_0(tmp_path: Path):
    document = job(every_steps=4)
    folder(tmp_path)
    with pytest.raises(RankFailed):
        on_ranks(2, _killed, document, tmp_path)
    _damage(tmp_path / "checkpoints" / "step-00000004" / "rank-00000.safetensors", "flipped bit")

    with pytest.raises(RankFailed, match="None of the 1 checkpoints in") as caught:
        on_ranks(2, _resumed, document, tmp_path)

    assert caught.value.kind == "TrainerError"
    assert [step for step, _ in layout.committed(tmp_path / "checkpoints")] == [4]


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_repeated(killed: Path, tmp_path: Path):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    _damage(tmp_path / "checkpoints" / "step-00000004" / "rank-00000.safetensors", "truncated")

    first, _ = on_ranks(2, _resumed, job(every_steps=2), tmp_path)

    assert (first["status"], first["resumed_from"]) == ("Succeeded", 2)
    assert [step for step, _ in layout.committed(tmp_path / "checkpoints")] == [6, 4]
    manifest, _ = read_manifest(tmp_path / "checkpoints" / "step-00000004")
    for name, file in manifest.files.items():
        verification.verify(tmp_path / "checkpoints" / "step-00000004", name, file)
    assert layout.temporary_folders(tmp_path / "checkpoints") == []


def test_a_full_volume_ends_all_ranks_with_one_error_and_loses_nothing(killed: Path, tmp_path: Path):
    document = job(every_steps=2)
    with small_file_system(tmp_path, 24) as volume:
        root = volume / "run"
        shutil.copytree(killed, root)

        first, second = on_ranks(2, _filled, document, root)

        # Both ranks report the reason of the rank that failed, not PeerLost.
        assert first == second
        code, message = first
        assert code == 74
        start = rf"rank [01]: Saving a checkpoint in {root}/checkpoints failed: No space left on device\."
        assert re.match(
            rf"{start} A checkpoint needs 1[78]\d\.\d\d KiB, and now .* are free there: enlarge the volume", message
        )
        assert [step for step, _ in layout.committed(root / "checkpoints")] == [4, 2]
        assert layout.temporary_folders(root / "checkpoints") == []

        (volume / "another-writers-file").unlink()
        ended, _ = on_ranks(2, _third, document, root)
        assert (ended["status"], ended["resumed_from"]) == ("Succeeded", 4)


def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path: Path):
    document = job(every_steps=2)
    folder(tmp_path)
    with pytest.raises(RankFailed):
        on_ranks(1, _killed_0, document, tmp_path)
    document["spec"]["training"]["learningRate"] = 1e-3
    document["spec"]["training"]["logEverySteps"] = 2  # changes no number, so it may differ

    with pytest.raises(
        RankFailed, match=r"spec\.training\.learningRate: the checkpoint has 0\.002, the job 0\.001"
    ) as e:
        on_ranks(1, _resumed, document, tmp_path)

    assert "logEverySteps" not in str(e.value)


def _damage(shard: Path, how: str) -> str:
    """Damage a file; what the reason must contain."""
    content = shard.read_bytes()
    match how:
        case "truncated":
            shard.write_bytes(content[:-1])
            return f"expected {len(content)} bytes, found {len(content) - 1}"
        case "flipped bit":
            shard.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
            return "SHA-256"
        case "missing":
            shard.unlink()
            return "No such file"
        case _:
            elsewhere = shard.parents[2] / "elsewhere"
            shard.rename(elsewhere)
            shard.symlink_to(elsewhere)
            return "symbolic link"


def _stopped_after(document: dict[str, Any], root: Path, attempt: int, step: int) -> dict[str, Any]:
    return train_until(document, root, attempt, stop_after=step)


def _terminated_in_saves(document: dict[str, Any], root: Path, attempt: int) -> dict[str, Any]:
    return train_until(document, root, attempt, terminate_in_saves=(0, "shard-half"))


def _whole(document: dict[str, Any], root: Path) -> dict[str, Any]:
    return train_until(document, root, 1)


def _killed(document: dict[str, Any], root: Path) -> dict[str, Any]:
    return train_until(document, root, 1, kill_after=(1, 5))


def _killed_0(document: dict[str, Any], root: Path) -> dict[str, Any]:
    return train_until(document, root, 1, kill_after=(0, 5))


def _resumed(document: dict[str, Any], root: Path) -> dict[str, Any]:
    return train_until(document, root, 2)


def _third(document: dict[str, Any], root: Path) -> dict[str, Any]:
    return train_until(document, root, 3)


def _filled(document: dict[str, Any], root: Path) -> tuple[int, str]:
    """Attempt 2, with another writer that fills the volume during its first save; its exit code and message."""
    from functools import partial

    from dpo_operator.api.types import DPOJob
    from dpo_trainer.checkpoint.store import Checkpoints
    from dpo_trainer.runtime.errors import TrainerError
    from dpo_trainer.runtime.stop import StopRequest
    from dpo_trainer.runtime.workdir import WorkDir
    from dpo_trainer.telemetry import Telemetry
    from dpo_trainer.training import build, train

    rank = int(os.environ["RANK"])

    def observe(*reached: Any) -> None:
        if rank == 1 and reached[-1] == "shard-opened":
            fill(root.parent)

    build.Checkpoints = partial(Checkpoints, observe=observe)  # type: ignore[misc]
    telemetry = Telemetry(
        "train", 2, WorkDir(root), rank=rank, world_size=2, checkpoints=CheckpointFolder(WorkDir(root).checkpoints)
    )
    try:
        train.run(DPOJob.model_validate(document), WorkDir(root), telemetry=telemetry, attempt=2, stop=StopRequest())
    except TrainerError as error:
        return int(error.exit_code), str(error)
    raise AssertionError("the save succeeded")


def _refused(document: dict[str, Any], roots: list[Path]) -> list[dict[str, Any]]:
    """Load from each folder as the loop does; which step, and what was refused."""
    from dpo_operator.api.types import DPOJob
    from dpo_trainer.checkpoint.store import Checkpoints
    from dpo_trainer.distributed.ranks import Ranks
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.engine.engine import Engine
    from dpo_trainer.runtime.workdir import WorkDir

    world, found = join_world("cpu"), []
    engine = Engine(DPOJob.model_validate(document).spec, WorkDir(roots[0]).model, world)
    state = engine.state()
    for root in roots:
        work = WorkDir(root)
        saved = json.loads((work.checkpoints / "step-00000002" / "manifest.json").read_text())
        checkpoints = Checkpoints(work.checkpoints, 2, saved["identity"], ranks=Ranks())
        checkpoints.begin()
        restored = checkpoints.load(state)
        assert restored is not None
        found.append({"step": restored.step, "refused": list(restored.refused)})
    return found
