"""Checkpoints are copied to a real store and fetched from it: whole or not there, by keepLast and keepBest, and only the job's own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import obstore
import pytest

from dpo_operator.api import access as api
from dpo_operator.api.diagnosis import Finding
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import CheckpointRecord, RecordedCheckpoints
from dpo_operator.api.training import Checkpoint
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.manifest import MANIFEST, File, Manifest, read_manifest
from dpo_trainer.checkpoint.trust import Owner, Trust
from dpo_trainer.diagnosis.history import Diagnosis
from dpo_trainer.mirror import run_files
from dpo_trainer.mirror.place import NOTE, Place
from dpo_trainer.mirror.restore import restore
from dpo_trainer.mirror.save import save
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.sources.access import Access
from dpo_trainer.sources.remote_folder import open_folder
from tests import tied
from tests.contract.stores.conftest import Phases
from tests.contract.stores.runs import KEYS, a_job, dpo_run, losses
from tests.s3 import SECRET, Answer, Request, Server, before, error
from tests.unit.trainer.checkpoints import PLAIN_MANIFEST, loop_state

pytestmark = pytest.mark.contract

# A process that copies and is killed by the proxy.
ALONE = """
import json, sys
from pathlib import Path
from dpo_operator.api import access as api
from dpo_operator.api.training import Checkpoint
from dpo_trainer.diagnosis.history import Diagnosis
from dpo_trainer.mirror import run_files
from dpo_trainer.mirror.place import Place
from dpo_trainer.mirror.save import save
from dpo_trainer.sources.access import Access
from dpo_trainer.sources.remote_folder import open_folder
to, root, url, keys = sys.argv[1:]
access = Access(api.Access.model_validate({"s3": {"endpoint": url}}), json.loads(keys))
save(Place(open_folder(to, access), "uid-1"), Path(root), Checkpoint(keep_last=1), None, lambda _: None)
"""


def a_checkpoint(root: Path, step: int, *, attempt: int = 1, selection: float | None = None, size: int = 1000) -> Path:
    """A committed checkpoint of two ranks. size: of the first one's file, bytes."""
    folder = root / layout.folder_name(step)
    folder.mkdir(parents=True)
    files = {}
    for rank, content in enumerate((os.urandom(size), os.urandom(100))):
        (folder / layout.shard_name(rank)).write_bytes(content)
        files[layout.shard_name(rank)] = File(size=len(content), sha256=sha256(content).hexdigest())
    changes: dict[str, Any] = {
        "step": step,
        "attempt": attempt,
        "world_size": 2,
        "files": files,
        "state": loop_state(step),
    }
    manifest = Manifest(**PLAIN_MANIFEST.__dict__ | changes | {"metrics": {"selection": selection}})
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    return folder


def place(url: str, to: str, owner: str = "uid-1") -> Place:
    return Place(open_folder(to, Access(api.Access.model_validate({"s3": {"endpoint": url}}), KEYS)), owner)


def copy(server: Server, to: str, root: Path, **settings: int) -> int:
    checkpoint = Checkpoint.model_validate(settings)
    return save(place(server.url, to), root, checkpoint, None, lambda _: None).step


def names(server: Server, to: str) -> set[str]:
    bucket, _, prefix = to.removeprefix("s3://").partition("/")
    found = obstore.list(server.bucket(bucket), prefix)
    return {meta["path"].removeprefix(f"{prefix}/") for chunk in found for meta in chunk}


def whole(server: Server, to: str) -> list[int]:
    return sorted(int(name[5:13]) for name in names(server, to) if name.endswith(MANIFEST))


def require_whole(server: Server, to: str) -> None:
    """Whatever has a manifest has each of its files, byte for byte."""
    folder = server.folder / to.removeprefix("s3://")
    for step in whole(server, to):
        manifest, _ = read_manifest(folder / layout.folder_name(step))
        for name, file in manifest.files.items():
            assert sha256((folder / layout.folder_name(step) / name).read_bytes()).hexdigest() == file.sha256


def fetch(server: Server, to: str, root: Path, trust: Trust | None = None, **owner: Any) -> int | None:
    identity = {"spec.training.seed": 1}
    found = restore(place(server.url, to, **owner), root, Owner(identity, trust), lambda *_: None)
    return None if found is None else found.step


def record(folder: Path) -> CheckpointRecord:
    manifest, digest = read_manifest(folder)
    return CheckpointRecord(step=manifest.step, attempt=manifest.attempt, digest=digest)


def trusting(*folders: Path, required: bool = True) -> Trust:
    return Trust(RecordedCheckpoints(last_attempt=1, checkpoints=tuple(map(record, folders))), required)


def killed_at(number: int, server: Server, to: str, root: Path) -> bool:
    """Copy in a process that is killed at one of its writes, which still reaches the store; False when it has fewer."""
    processes: list[subprocess.Popen[bytes]] = []
    writes = count(1)

    def fault(request: Request) -> None:
        if request.method in ("PUT", "POST", "DELETE") and next(writes) == number:
            processes[0].send_signal(signal.SIGKILL)
            processes[0].wait()

    with before(server, fault) as proxy:
        processes.append(tied.popen([sys.executable, "-c", ALONE, to, str(root), proxy.url, json.dumps(KEYS)]))
        code = processes[0].wait(timeout=120)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_a_copy_that_is_killed_at_any_write_leaves_nothing_half(server: Server, tmp_path: Path) -> None:
    server.bucket("killed")
    old, new = tmp_path / "old", tmp_path / "new"
    a_checkpoint(old, 1, size=5000)
    # Another checkpoint of step 1, as a run that went back makes it, and a larger one that is sent in parts.
    a_checkpoint(new, 1)
    a_checkpoint(new, 2, size=17 << 20)
    for number in count(1):
        to = f"s3://killed/{number}"
        copy(server, to, old)
        if not killed_at(number, server, to, new):
            break
        require_whole(server, to)
        assert copy(server, to, new, keepLast=2) == 2
        assert whole(server, to) == [1, 2]
        require_whole(server, to)
    assert number > 8
    assert whole(server, to) == [2]
    require_whole(server, to)


def test_a_mirror_keeps_what_the_volume_keeps(server: Server, tmp_path: Path) -> None:
    server.bucket("kept")
    root, to = tmp_path / "checkpoints", "s3://kept/run"
    for step, selection in ((1, 0.2), (2, 0.9), (3, 0.5)):
        a_checkpoint(root, step, selection=selection)
    assert copy(server, to, root, keepLast=1, keepBest=1) == 3
    assert whole(server, to) == [1, 3]
    # The volume is another one, and what the mirror has still counts.
    shutil.rmtree(root)
    a_checkpoint(root, 4, selection=0.7)
    assert copy(server, to, root, keepLast=2, keepBest=1) == 4
    assert whole(server, to) == [1, 3, 4]
    assert {name.split("/")[0] for name in names(server, to)} == {
        NOTE,
        "step-00000001",
        "step-00000003",
        "step-00000004",
    }
    # Nothing is sent again, but the manifest that training amended.
    manifest, _ = read_manifest(root / "step-00000004")
    (root / "step-00000004" / MANIFEST).write_bytes(manifest.model_copy(update={"time": 7.0}).to_bytes())
    with before(server, lambda _: None) as proxy:
        save(place(proxy.url, to), root, Checkpoint(keep_last=2), None, lambda _: None)
    assert [seen.path for seen in proxy.seen if seen.method != "GET" and seen.method != "HEAD"] == [
        "/kept/run/step-00000004/manifest.json"
    ]
    require_whole(server, to)


def test_a_folder_of_somebody_else_is_left_alone(server: Server, tmp_path: Path) -> None:
    bucket = server.bucket("occupied")
    root = tmp_path / "checkpoints"
    a_checkpoint(root, 1)
    obstore.put(bucket, "data/precious.txt", b"keep")
    save(place(server.url, "s3://occupied/theirs", "uid-2"), root, Checkpoint(), None, lambda _: None)
    for to in ("s3://occupied/data", "s3://occupied/theirs"):
        there = names(server, to)
        for use in (copy, fetch):
            with pytest.raises(TrainerError, match="not of this job's mirror") as failure:
                use(server, to, root if use is copy else tmp_path / "new")
            assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION
        assert names(server, to) == there


def test_a_local_run_takes_over_the_mirror_of_its_namesake(server: Server, tmp_path: Path) -> None:
    server.bucket("local")
    root, to = tmp_path / "checkpoints", "s3://local/run"
    a_checkpoint(root, 1)
    for theirs in ("local/mine", "local/mine/uid-1"):  # the first is what earlier versions noted
        shutil.rmtree(server.folder / "local" / "run", ignore_errors=True)
        save(place(server.url, to, theirs), root, Checkpoint(), None, lambda _: None)
        own, stranger = place(server.url, to, "local/mine/uid-2"), place(server.url, to, "local/mine2/uid-2")
        with pytest.raises(TrainerError, match=r"another work folder.*--restore"):
            own.look()
        assert stranger.of_namesake() == stranger
        with pytest.raises(TrainerError, match="not of this job's mirror"):
            stranger.look()
        assert own.of_namesake().owner == theirs
        own.take_over()
        assert whole(server, to) == [1]
        assert own.of_namesake() == own
        own.look()
        with pytest.raises(TrainerError, match=r"another work folder|not of this job"):
            save(place(server.url, to, theirs), root, Checkpoint(), None, lambda _: None)


def test_only_recorded_checkpoints_are_copied(server: Server, tmp_path: Path) -> None:
    server.bucket("recorded")
    root = tmp_path / "checkpoints"
    own = a_checkpoint(root, 1)
    trust = trusting(own)
    # Put on the volume by somebody else, and one whose file is a link.
    a_checkpoint(root, 9)
    outside = tmp_path / "elsewhere"
    (own / "rank-00001.safetensors").rename(outside)
    (own / "rank-00001.safetensors").symlink_to(outside)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        save(place(server.url, "s3://recorded/run"), root, Checkpoint(), trust, lambda _: None)
    assert whole(server, "s3://recorded/run") == []
    (own / "rank-00001.safetensors").unlink()
    outside.rename(own / "rank-00001.safetensors")
    assert save(place(server.url, "s3://recorded/run"), root, Checkpoint(), trust, lambda _: None).step == 1
    assert whole(server, "s3://recorded/run") == [1]


def test_a_refused_copy_is_reported_and_the_next_one_continues(server: Server, tmp_path: Path) -> None:
    server.bucket("refused")
    root, to = tmp_path / "checkpoints", "s3://refused/run"
    a_checkpoint(root, 1)

    def fault(seen: Request) -> Answer | None:
        return (
            error(403, "AccessDenied")
            if seen.method == "PUT" and seen.path.endswith("rank-00001.safetensors")
            else None
        )

    with before(server, fault) as proxy, pytest.raises(TrainerError, match="access was refused") as failure:
        save(place(proxy.url, to), root, Checkpoint(), None, lambda _: None)
    assert failure.value.exit_code == ExitCode.ACCESS_DENIED
    assert SECRET not in str(failure.value)
    assert whole(server, to) == []
    with before(server, lambda _: None) as proxy:
        assert save(place(proxy.url, to), root, Checkpoint(), None, lambda _: None).step == 1
    assert [seen.path.rpartition("/")[2] for seen in proxy.seen if seen.method == "PUT"] == [
        "rank-00001.safetensors",
        MANIFEST,
    ]


def test_a_damaged_checkpoint_is_not_copied(server: Server, tmp_path: Path) -> None:
    server.bucket("damaged")
    folder = a_checkpoint(tmp_path / "checkpoints", 1, size=17 << 20)
    for name in ("rank-00000.safetensors", "rank-00001.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(TrainerError, match="the SHA-256 is not the one in the manifest") as failure:
            copy(server, "s3://damaged/run", folder.parent)
        assert failure.value.exit_code == ExitCode.VOLUME_ERROR
        assert f"{folder.name}/{name}" not in names(server, "s3://damaged/run")
        assert whole(server, "s3://damaged/run") == []
        (folder / name).write_bytes(content)


def test_a_checkpoint_that_goes_while_it_is_copied(server: Server, tmp_path: Path) -> None:
    server.bucket("moving")
    root = tmp_path / "checkpoints"
    first = a_checkpoint(root, 1)

    def fault(request: Request) -> None:
        if request.path.endswith("step-00000001/rank-00000.safetensors") and request.method == "PUT":
            shutil.rmtree(first)
            a_checkpoint(root, 2)

    with before(server, fault) as proxy:
        found = save(place(proxy.url, "s3://moving/run"), root, Checkpoint(keep_last=1), None, lambda _: None)
    assert found.step == 2
    assert whole(server, "s3://moving/run") == [2]
    assert {name.split("/")[0] for name in names(server, "s3://moving/run")} == {NOTE, "step-00000002"}


def test_the_newest_intact_checkpoint_is_fetched(server: Server, tmp_path: Path) -> None:
    bucket = server.bucket("fetched")
    root, to, new = tmp_path / "checkpoints", "s3://fetched/run", tmp_path / "new"
    assert fetch(server, to, new) is None
    for step in (1, 2, 3, 4):
        a_checkpoint(root, step, attempt=3, size=17 << 20 if step == 2 else 1000)
    copy(server, to, root, keepLast=4)
    # Step 4 is half, and of step 3 a file was changed.
    obstore.delete(bucket, "run/step-00000004/manifest.json")
    obstore.put(bucket, "run/step-00000003/rank-00001.safetensors", b"x" * 100)
    with before(server, lambda seen: "cut" if seen.number == 1 and "rank-00000" in seen.path else None) as proxy:
        found = restore(place(proxy.url, to), new, Owner({"spec.training.seed": 1}), lambda *_: None)
    assert found is not None
    assert (found.step, found.digest) == (2, record(root / "step-00000002").digest)
    assert sorted(path.name for path in new.iterdir()) == ["attempt", "step-00000002"]
    assert layout.read_fence(new) == 3
    for path in (root / "step-00000002").iterdir():
        assert (new / "step-00000002" / path.name).read_bytes() == path.read_bytes()
    # What an interrupted fetch left is used if it is right.
    for name, damaged, requests in (("right", False, 0), ("wrong", True, 2)):
        half = tmp_path / name / ".restored.tmp" / "step-00000002"
        shutil.copytree(root / "step-00000002", half)
        if damaged:
            (half / "rank-00001.safetensors").write_bytes(b"x" * 100)
        with before(server, lambda _: None) as proxy:
            restore(place(proxy.url, to), tmp_path / name, Owner({"spec.training.seed": 1}), lambda *_: None)
        assert len([seen for seen in proxy.seen if "step-00000002/rank" in seen.path]) == requests
    # A volume that has checkpoints keeps them.
    assert fetch(server, to, new) == 2


def test_a_fetch_takes_only_the_jobs_own(server: Server, tmp_path: Path) -> None:
    server.bucket("own")
    root, to = tmp_path / "checkpoints", "s3://own/run"
    own = a_checkpoint(root, 1)
    a_checkpoint(root, 2)
    copy(server, to, root)
    assert fetch(server, to, tmp_path / "new", trusting(own)) == 1
    with pytest.raises(TrainerError, match=r"None of the 2 checkpoints .* belongs to other settings") as failure:
        restore(place(server.url, to), tmp_path / "other", Owner({"spec.training.seed": 2}), lambda *_: None)
    assert failure.value.exit_code == ExitCode.INPUT_NOT_FOUND
    assert not layout.committed(tmp_path / "other")


def test_a_runs_figures_come_back_up_to_the_checkpoint(server: Server, tmp_path: Path) -> None:
    server.bucket("figures")
    old, new = WorkDir(tmp_path / "old"), WorkDir(tmp_path / "new")
    lines = [json.dumps({"step": step, "loss": 0.5 / step}) for step in (1, 2, 3)]
    for work in (old, new):
        work.root.mkdir()
    old.metrics.write_text("\n".join([*lines, '{"step": 1, "lo']))
    (tmp_path / "secret").write_text('{"step": 1}')
    old.samples.symlink_to(tmp_path / "secret")
    early, late = (Finding(code=code, severity="Info", step=step, cause="x") for code, step in (("A", 1), ("B", 3)))
    Diagnosis().at(1, [early])[0].at(3, [early, late])[0].write(old)
    said: list[str] = []
    old.selection.mkdir()
    for name in ("epoch-0.npy", "epoch-0.json", "epoch-1.tmp"):
        (old.selection / name).write_text(name)
    run_files.save(place(server.url, "s3://figures/run"), old, said.append)
    assert len(said) == 1
    lists = {"selection/epoch-0.npy", "selection/epoch-0.json"}
    assert names(server, "s3://figures/run") == {"metrics.jsonl", "diagnosis.json"} | lists
    mirror = place(server.url, "s3://figures/run")
    mirror.take_over()
    run_files.restore(mirror, new, 2, lambda *_: None)
    assert new.metrics.read_text().splitlines() == lines[:2]
    assert [finding.code for finding in Diagnosis.read(new).findings] == ["A"]
    assert not new.samples.exists()
    assert {f"selection/{path.name}" for path in new.selection.iterdir()} == lists
    assert (new.selection / "epoch-0.npy").read_text() == "epoch-0.npy"
    # What the volume has is left as it is.
    new.metrics.write_text("")
    run_files.restore(mirror, new, 3, lambda *_: None)
    assert new.metrics.read_text() == ""


def test_a_lost_work_folder_is_restored_from_the_mirror(server: Server, phases: Phases, tmp_path: Path) -> None:
    bucket, job = server.bucket("runs"), a_job(server, tmp_path)
    dpo_run(job, phases)
    assert whole(server, "s3://runs/mirrored") == [1, 2, 3, 4]
    undisturbed, weights = losses(phases), (phases.work / "export" / "model.safetensors").read_bytes()
    assert phases.leaks() == []
    # As if the machine had gone before the last steps were copied.
    for step in (3, 4):
        for name in names(server, "s3://runs/mirrored"):
            if name.startswith(layout.folder_name(step)):
                obstore.delete(bucket, f"mirrored/{name}")
    assert whole(server, "s3://runs/mirrored") == [1, 2]
    shutil.rmtree(phases.work)
    # It might be another person's run of this name.
    dpo_run(job, phases, code=ExitCode.INVALID_CONFIGURATION)
    assert "dpo run --restore" in phases.output
    dpo_run(job, phases, "--restore")
    # The figures of the steps before came back, too, and those of lost steps did not.
    assert losses(phases) == undisturbed
    assert (phases.work / "export" / "model.safetensors").read_bytes() == weights
    assert whole(server, "s3://runs/mirrored") == [1, 2, 3, 4]
    assert phases.leaks() == []
    assert not [p for p in (server.folder / "runs").rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
