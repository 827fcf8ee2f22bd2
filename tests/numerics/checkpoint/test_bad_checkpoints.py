"""Any corruption of the newest checkpoint is reported, the older one is used, and no code in it runs."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import CheckpointRecord, RecordedCheckpoints
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.folder import CheckpointFolder
from dpo_trainer.checkpoint.manifest import read_manifest
from dpo_trainer.commands import listing
from tests.numerics.corruptions import CORRUPTIONS, MANIFEST, Trap, change
from tests.numerics.interruptions import folder, job, train_until
from tests.numerics.ranks import RankFailed, on_ranks

pytestmark = [pytest.mark.numerics, pytest.mark.fault(29)]

DOCUMENT = job(every_steps=2, precision="fp32")


@dataclass(frozen=True)
class Case:
    """A folder of checkpoints and its records. recorded: None in a local run."""

    root: Path
    recorded: RecordedCheckpoints | None = None
    required: bool = False


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with checkpoints of steps 2 and 4, killed after step 5."""
    root = tmp_path_factory.mktemp("trained")
    folder(root)
    (root / "job.json").write_text(json.dumps(DOCUMENT))
    with pytest.raises(RankFailed):
        on_ranks(2, _killed, DOCUMENT, root)
    return root


def _killed(document: dict[str, Any], root: Path) -> dict[str, Any]:
    return train_until(document, root, 1, kill_after=(1, 5))


@dataclass(frozen=True)
class Bad:
    """A run with a bad checkpoint. reason: the expected reason. answer: what the ranks returned."""

    root: Path
    elsewhere: Path
    reason: str
    answer: dict[str, Any]


@pytest.fixture(scope="module")
def bad(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bad]:
    """All corruptions, each loaded by two ranks and opened by the export, in one world: a world takes seconds to make."""
    base = tmp_path_factory.mktemp("bad")
    reasons = {}
    for name, corrupt in CORRUPTIONS.items():
        shutil.copytree(trained / "checkpoints", base / name / "checkpoints")
        (base / name / "elsewhere").mkdir()
        reasons[name] = corrupt(base / name / "checkpoints" / "step-00000004", base / name / "elsewhere")
    cases = [Case(base / name / "checkpoints") for name in CORRUPTIONS]
    first, second = on_ranks(2, _load_all, DOCUMENT, trained, cases, timeout=200)
    assert first == second
    return {
        name: Bad(base / name / "checkpoints", base / name / "elsewhere", reasons[name], answer)
        for name, answer in zip(CORRUPTIONS, first, strict=True)
    }


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_bad_checkpoint_is_refused_with_a_reason_and_the_older_is_used(bad: dict[str, Bad], name: str):
    found = bad[name]
    assert found.answer["step"] == 2
    assert found.answer["weights"] == bad["missing manifest"].answer["weights"]
    [refused] = found.answer["refused"]
    assert found.reason in refused
    # The export reads only the weights, but refuses for the same reason.
    assert found.answer["exported"] == 2
    [skipped] = found.answer["skipped"]
    assert found.reason in skipped


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_checkpoint_list_reports_the_same(bad: dict[str, Bad], name: str):
    newest, older = listing.inspect(bad[name].root, verify=True)
    # The list has no job to compare with, so it can't tell to which job an intact checkpoint belongs.
    assert (newest.problem == "") if "other settings" in bad[name].reason else (bad[name].reason in newest.problem)
    assert (older.problem, older.verified, older.last) == ("", True, bool(newest.problem))


def test_a_planted_pickle_never_runs(bad: dict[str, Bad], tmp_path: Path):
    # The trap works: loading the pickle makes the file.
    pickle.loads(pickle.dumps(Trap(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()

    planted = [found for name, found in bad.items() if "pickle" in name]
    assert len(planted) == 2
    for found in planted:
        listing.inspect(found.root, verify=True)
        listing.inspect(found.root, verify=False)
        # By now two ranks have loaded it and an export has opened it.
        assert os.listdir(found.elsewhere) == []


def record(root: Path, step: int, **changes: Any) -> CheckpointRecord:
    manifest, digest = read_manifest(root / layout.folder_name(step))
    return CheckpointRecord(**{"step": step, "attempt": manifest.attempt, "digest": digest} | changes)


@pytest.fixture(scope="module")
def trusted(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The checkpoint that two ranks resume from when they have recorded digests."""
    base = tmp_path_factory.mktemp("trusted")
    roots = {}
    for name in ("good", "changed", "empty"):
        roots[name] = base / name
        shutil.copytree(trained / "checkpoints", roots[name])
    good = roots["good"]
    # Intact: only the digest of its manifest differs.
    change(roots["changed"] / "step-00000004", lambda manifest: manifest["state"].update(pairs_seen=0))
    for step in (2, 4):
        shutil.rmtree(roots["empty"] / layout.folder_name(step))

    def known(*records: CheckpointRecord, attempts: int = 1) -> RecordedCheckpoints:
        return RecordedCheckpoints(last_attempt=attempts, checkpoints=records)

    both, older = known(record(good, 2), record(good, 4)), known(record(good, 2))
    cases = {
        "recorded": Case(good, both, required=True),
        "changed after it was recorded": Case(roots["changed"], both),
        "committed after the last reading": Case(good, older),
        "committed after the last reading, and a record is required": Case(good, older, required=True),
        "of an attempt that never was": Case(good, known(attempts=0)),
        "all gone": Case(roots["empty"], both),
    }
    first, second = on_ranks(2, _load_all, DOCUMENT, trained, list(cases.values()))
    assert first == second
    return dict(zip(cases, first, strict=True))


def test_a_recorded_checkpoint_is_used(trusted: dict[str, dict[str, Any]]):
    found = trusted["recorded"]
    assert (found["step"], found["refused"], found["doubt"]) == (4, [], "")


def test_a_checkpoint_that_was_changed_after_its_record_is_refused(trusted: dict[str, dict[str, Any]]):
    found = trusted["changed after it was recorded"]
    assert found["step"] == 2
    [refused] = found["refused"]
    assert "step-00000004: expected the recorded digest " in refused
    assert "it was changed afterwards" in refused
    assert found["exported"] == 2


def test_an_unrecorded_checkpoint_causes_a_warning_or_a_refusal(
    trusted: dict[str, dict[str, Any]],
):
    found = trusted["committed after the last reading"]
    assert (found["step"], found["refused"]) == (4, [])
    assert "was not recorded; attempt 1 ended before reporting it to the operator" in found["doubt"]

    found = trusted["committed after the last reading, and a record is required"]
    assert (found["step"], found["doubt"]) == (2, "")
    assert "expected a recorded digest (checkpoint.requireRecordedDigest)" in found["refused"][0]


def test_without_a_matching_digest_the_job_fails_instead_of_starting_over(trusted: dict[str, dict[str, Any]]):
    code, message = trusted["of an attempt that never was"]["error"]
    assert code == ExitCode.VOLUME_ERROR
    assert "None of the 2 checkpoints in" in message
    assert "none was recorded, and the last attempt was number 0, so it was put there by someone else" in message

    code, message = trusted["all gone"]["error"]
    assert code == ExitCode.VOLUME_ERROR
    assert "expected the checkpoint of step 4, which attempt 1 committed, found none" in message


def test_a_run_gets_digests_and_reports_its_own(trained: Path, tmp_path: Path):
    root = tmp_path / "run"
    shutil.copytree(trained, root)
    known = (record(root / "checkpoints", 2), record(root / "checkpoints", 4))
    change(root / "checkpoints" / "step-00000004", lambda manifest: manifest["state"].update(pairs_seen=0))

    first, _ = on_ranks(2, _goes_on, DOCUMENT, root, RecordedCheckpoints(last_attempt=1, checkpoints=known))

    assert first["warnings"] == ["CheckpointRefused"]
    assert first["resumed"] == 2
    # At the end the volume has the checkpoints of steps 4 and 6, both of attempt 2, and their digests were reported.
    assert first["recorded"] == [record(root / "checkpoints", step).model_dump() for step in (4, 6)]
    assert [line["attempt"] for line in first["recorded"]] == [2, 2]


def _goes_on(document: dict[str, Any], root: Path, recorded: RecordedCheckpoints) -> dict[str, Any]:
    """Attempt 2 of a run, in a pod with recorded digests."""
    from dpo_operator.api import names
    from dpo_operator.api.types import DPOJob
    from dpo_trainer.runtime.stop import StopRequest
    from dpo_trainer.runtime.workdir import WorkDir
    from dpo_trainer.telemetry import Telemetry
    from dpo_trainer.training import train

    os.environ[names.ENV_RECORDED_CHECKPOINTS] = recorded.model_dump_json()
    warnings: list[str] = []
    telemetry = Telemetry(
        "train",
        2,
        WorkDir(root),
        rank=int(os.environ["RANK"]),
        world_size=2,
        checkpoints=CheckpointFolder(WorkDir(root).checkpoints),
    )
    telemetry.warning = lambda code, _text, **_: warnings.append(code) if telemetry.rank == 0 else None  # type: ignore[method-assign]
    train.run(DPOJob.model_validate(document), WorkDir(root), telemetry=telemetry, attempt=2, stop=StopRequest())
    telemetry.close()
    progress = telemetry.progress
    return {
        "warnings": warnings,
        "resumed": progress.resumed_from_step,
        "recorded": [line.model_dump() for line in progress.recorded],
    }


def test_any_intact_checkpoint_can_be_exported_without_deepspeed(trained: Path, tmp_path: Path):
    """Step 2 was neither evaluated nor the last. A damaged checkpoint is refused."""
    checkpoint, damaged = trained / "checkpoints" / "step-00000002", tmp_path / "checkpoints" / "step-00000004"
    shutil.copytree(trained / "checkpoints" / "step-00000004", damaged)
    (damaged / "rank-00001.safetensors").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")

    codes, said = export_without_deepspeed(
        [str(checkpoint), "--to", str(tmp_path / "made")],
        [str(checkpoint), "--to", str(tmp_path / "mine")],
        [str(damaged), "--to", str(tmp_path / "none"), "--work-dir", str(trained)],
    )

    assert codes == [ExitCode.OK, ExitCode.INVALID_CONFIGURATION, ExitCode.VOLUME_ERROR], said
    card = (tmp_path / "made" / "README.md").read_text()
    assert "| exported | step 2: chosen by hand |" in card
    assert "its weights equal the checkpoint's. The checkpoint has no log-probs to compare with." in card
    provenance = json.loads((tmp_path / "made" / "dpo_provenance.json").read_text())
    assert provenance["checkpoint"]["digest"] == record(trained / "checkpoints", 2).digest
    assert (tmp_path / "made" / "model.safetensors").read_bytes() != (trained / "model/model.safetensors").read_bytes()

    assert "expected a new or empty folder, or an earlier export, found other files" in said
    assert os.listdir(tmp_path / "mine") == ["letter.txt"]

    assert "can't be exported: rank-00001.safetensors: expected " in said
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "ran").exists()


def export_without_deepspeed(*commands: list[str]) -> tuple[list[int], str]:
    """Exit codes and output of `dpo export`, in one Python process without DeepSpeed."""
    program = (
        "import json, sys; sys.modules['deepspeed'] = None; from dpo_trainer.__main__ import main; "
        "print(json.dumps([main(['export-checkpoint', *command]) for command in json.loads(sys.argv[1])]))"
    )
    argv = [sys.executable, "-c", program, json.dumps(commands)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def _load_all(document: dict[str, Any], root: Path, cases: list[Case]) -> list[dict[str, Any]]:
    """Load each case as the loop does, and open it as the export does."""
    import torch

    from dpo_operator.api.types import DPOJob
    from dpo_trainer.checkpoint.full import open_newest
    from dpo_trainer.checkpoint.store import Checkpoints
    from dpo_trainer.checkpoint.trust import Owner, Trust
    from dpo_trainer.distributed.ranks import Ranks
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.engine.engine import Engine
    from dpo_trainer.runtime.errors import TrainerError
    from dpo_trainer.runtime.workdir import WorkDir

    work, world = WorkDir(root), join_world("cpu")
    engine = Engine(DPOJob.model_validate(document).spec, work.model, world)
    state = engine.state()
    identity = json.loads((work.checkpoints / "step-00000002" / MANIFEST).read_text())["identity"]

    def load(case: Case) -> dict[str, Any]:
        trust = Trust(case.recorded, case.required) if case.recorded else None
        checkpoints = Checkpoints(case.root, 2, identity, ranks=Ranks(), trust=trust)
        try:
            restored = checkpoints.load(state)
            assert restored is not None
            full, skipped = open_newest(case.root, Owner(identity, trust))
        except TrainerError as error:
            return {"error": (error.exit_code, str(error))}
        sums = [entry.read().double().sum() for entry in state.entries()]
        weights = torch.stack(sums).sum()
        torch.distributed.all_reduce(weights)
        return {
            "step": restored.step,
            "refused": list(restored.refused),
            "doubt": restored.doubt,
            "weights": float(weights),
            "exported": full.manifest.step,
            "skipped": skipped,
        }

    return [load(case) for case in cases]
