"""An export is copied to a real store: once, whole, and never so that a half of it looks whole."""

import json
import os
import signal
import subprocess
import sys
from hashlib import sha256
from itertools import count
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_operator.api import access as api
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.training import Push
from dpo_trainer.export.push import BEGUN, PROVENANCE, WHOLE, push
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.sources.access import Access
from dpo_trainer.sources.stores import WRITTEN_AT_ONCE
from tests import tied
from tests.contract.stores.conftest import Phases
from tests.s3 import KEY, SECRET, Request, Server, before, error, upload
from tests.unit.trainer.place import rows
from tests.unit.trainer.tiny import tiny_model, write_jsonl

pytestmark = pytest.mark.contract

KEYS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
# A process that pushes and is killed by the proxy.
ALONE = """
import json, sys
from pathlib import Path
from dpo_operator.api import access as api
from dpo_operator.api.training import Push
from dpo_trainer.export.push import push
from dpo_trainer.sources.access import Access
to, folder, url, keys = sys.argv[1:]
access = Access(api.Access.model_validate({"s3": {"endpoint": url}}), json.loads(keys))
push(Push(to=to), "uid-1", Path(folder), access, lambda _: None)
"""


def an_export(folder: Path, **extra: bytes) -> Path:
    """A folder as the export leaves it: two shards, one of them large, and a provenance with the digest of each file."""
    content = {
        "model-00001-of-00002.safetensors": os.urandom(1 << 20) * 20,
        "model-00002-of-00002.safetensors": os.urandom(1000),
        "config.json": b"{}",
        "README.md": b"# card",
        "tokenizer.json": b"{}",
        **extra,
    }
    folder.mkdir()
    for name, data in content.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    files = {name: sha256(data).hexdigest() for name, data in content.items()}
    (folder / PROVENANCE).write_text(json.dumps({"files": files}))
    return folder


def access(url: str) -> Access:
    return Access(api.Access.model_validate({"s3": {"endpoint": url}}), KEYS)


def do(server: Server, to: str, folder: Path, uid: str = "uid-1") -> list[str]:
    said: list[str] = []
    push(Push(to=to), uid, folder, access(server.url), said.append)
    return said


def names(bucket: S3Store, prefix: str) -> set[str]:
    return {meta["path"].removeprefix(f"{prefix}/") for chunk in obstore.list(bucket, prefix) for meta in chunk}


def looks_whole(bucket: S3Store, prefix: str) -> bool:
    """Whether a loader, or whoever waits for the last object, would take the folder for a model."""
    return bool({"config.json", WHOLE} & names(bucket, prefix))


def require_copy(server: Server, bucket: str, prefix: str, folder: Path) -> None:
    there = server.folder / bucket / prefix
    assert names(server.bucket(bucket), prefix) == {WHOLE, *(path.name for path in folder.iterdir())}
    for path in folder.iterdir():
        assert (there / path.name).read_bytes() == path.read_bytes(), path.name
    marker = json.loads((there / WHOLE).read_text())
    assert marker["digest"] == sha256((folder / PROVENANCE).read_bytes()).hexdigest()


def test_a_run_from_a_bucket_into_a_bucket(server: Server, phases: Phases, tmp_path: Path) -> None:
    bucket = server.bucket("whole-run")
    model = tiny_model(tmp_path / "model")
    # The same model with all of its weights.
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(model)
    upload(bucket, model, "in/model")
    obstore.put(bucket, "in/pairs.jsonl", write_jsonl(tmp_path / "pairs.jsonl", rows(8)).read_bytes())
    job = {
        "apiVersion": "dpo-operator.dev/v1alpha1",
        "kind": "DPOJob",
        "metadata": {"name": "from-s3-to-s3"},
        "spec": {
            "model": {"name": "s3://whole-run/in/model"},
            "data": {"train": {"source": "s3://whole-run/in/pairs.jsonl"}, "maxLength": 64},
            "training": {"globalBatchSize": 4, "maxSteps": 1, "learningRate": 0.01, "precision": "fp32"},
            "evaluation": {"samples": 0},
            "gpusPerNode": 0,
            "access": {"s3": {"endpoint": server.url}},
            "export": {"push": {"to": "s3://whole-run/out"}},
        },
    }
    (tmp_path / "dpojob.yaml").write_text(json.dumps(job))
    done = subprocess.run(
        [
            Path(sys.executable).with_name("dpo"),
            "run",
            tmp_path / "dpojob.yaml",
            "--work-dir",
            phases.work,
            "--metrics-port",
            "0",
        ],
        env={**os.environ, **KEYS},
        capture_output=True,
        text=True,
    )
    phases.output = done.stdout + done.stderr
    assert done.returncode == 0, phases.output
    require_copy(server, "whole-run", "out", phases.work / "export")
    pushed = phases.termination("export")["pushed"]
    provenance = (phases.work / "export" / PROVENANCE).read_bytes()
    assert pushed == {"to": "s3://whole-run/out", "digest": sha256(provenance).hexdigest()}
    report = (phases.work / "report" / "report.txt").read_text()
    assert "pushed: s3://whole-run/out" in report
    assert "storageUri: s3://whole-run/out" in report
    assert "s3://whole-run/out" in (phases.work / "export" / "README.md").read_text()
    assert phases.leaks() == []
    assert not [
        path for path in server.folder.rglob("out/*") if path.is_file() and SECRET.encode() in path.read_bytes()
    ]


def test_an_export_is_pushed_once_and_whole(server: Server, tmp_path: Path) -> None:
    bucket = server.bucket("out")
    folder = an_export(tmp_path / "export")
    assert (folder / "model-00001-of-00002.safetensors").stat().st_size > WRITTEN_AT_ONCE
    report = push(Push(to="s3://out/team/model/"), "uid-1", folder, access(server.url), lambda _: None)
    assert report.to == "s3://out/team/model"
    require_copy(server, "out", "team/model", folder)
    with before(server, lambda _: None) as proxy:
        again = push(Push(to="s3://out/team/model"), "uid-1", folder, access(proxy.url), lambda _: None)
    assert again == report
    assert {seen.method for seen in proxy.seen} <= {"GET", "HEAD"}
    assert looks_whole(bucket, "team/model")


def killed_at(number: int, server: Server, to: str, folder: Path) -> bool:
    """Push in a process that is killed at one of its writes, which still reaches the store; False when it has fewer."""
    processes: list[subprocess.Popen[bytes]] = []
    writes = count(1)

    def fault(request: Request) -> None:
        if request.method in ("PUT", "POST", "DELETE") and next(writes) == number:
            processes[0].send_signal(signal.SIGKILL)
            processes[0].wait()

    with before(server, fault) as proxy:
        processes.append(tied.popen([sys.executable, "-c", ALONE, to, str(folder), proxy.url, json.dumps(KEYS)]))
        code = processes[0].wait(timeout=120)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_a_push_that_is_killed_at_any_write_ends_up_whole(server: Server, tmp_path: Path) -> None:
    bucket, folder = server.bucket("killed"), an_export(tmp_path / "export")
    own = {path.name for path in folder.iterdir()}
    for number in count(1):
        to = f"model-{number}"
        if not killed_at(number, server, f"s3://killed/{to}", folder):
            break
        there = names(bucket, to)
        if "config.json" in there:
            assert {name for name in own if name.endswith(".safetensors")} <= there
        if WHOLE in there:
            assert own <= there
        do(server, f"s3://killed/{to}", folder)
        require_copy(server, "killed", to, folder)
    # Two notes, five small files, a large one in parts, and the end of the first note.
    assert number > 10
    require_copy(server, "killed", to, folder)


def test_another_export_replaces_the_earlier_one(server: Server, tmp_path: Path) -> None:
    server.bucket("again")
    do(server, "s3://again/model", an_export(tmp_path / "one", **{"old.safetensors": b"x"}))
    other = an_export(tmp_path / "two")
    do(server, "s3://again/model", other)
    require_copy(server, "again", "model", other)


def test_a_folder_of_somebody_else_is_left_alone(server: Server, tmp_path: Path) -> None:
    bucket, folder = server.bucket("taken"), an_export(tmp_path / "export")
    obstore.put(bucket, "data/precious.txt", b"keep")
    do(server, "s3://taken/theirs", folder, uid="uid-2")
    for to in ("s3://taken/data", "s3://taken/theirs"):
        with pytest.raises(TrainerError, match="not of this job's export") as failure:
            do(server, to, folder)
        assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION
    assert names(bucket, "data") == {"precious.txt"}
    require_copy(server, "taken", "theirs", folder)


def test_objects_that_others_put_into_the_folder_are_not_deleted(server: Server, tmp_path: Path) -> None:
    bucket, folder = server.bucket("mixed"), an_export(tmp_path / "export")
    killed_at(4, server, "s3://mixed/model", folder)
    do(server, "s3://mixed/whole", an_export(tmp_path / "earlier", **{"old.safetensors": b"x"}))
    for to in ("model", "whole"):
        obstore.put(bucket, f"{to}/precious.txt", b"keep")
        before_it = names(bucket, to)
        with pytest.raises(TrainerError, match=r"not of this job's export \(precious.txt\)") as failure:
            do(server, f"s3://mixed/{to}", folder)
        assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION
        assert names(bucket, to) == before_it
        obstore.delete(bucket, f"{to}/precious.txt")
        do(server, f"s3://mixed/{to}", folder)
        require_copy(server, "mixed", to, folder)


def test_of_two_jobs_one_gets_an_empty_folder(server: Server, tmp_path: Path) -> None:
    server.bucket("race")
    first, second = an_export(tmp_path / "first"), an_export(tmp_path / "second")

    def fault(request: Request) -> None:
        # The second job has listed the folder and is about to write when the first one pushes.
        if request.method == "PUT" and request.path.endswith(BEGUN) and request.number == 1:
            do(server, "s3://race/model", first)

    def meanwhile(request: Request) -> None:
        if request.method == "PUT" and request.path.endswith(BEGUN) and request.number == 1:
            killed_at(4, server, "s3://race/half", first)

    for to, happens in (("model", fault), ("half", meanwhile)):
        with before(server, happens) as proxy, pytest.raises(TrainerError, match="not of this job's export"):
            push(Push(to=f"s3://race/{to}"), "uid-2", second, access(proxy.url), lambda _: None)
        do(server, f"s3://race/{to}", first)
        require_copy(server, "race", to, first)


def test_the_marker_of_a_whole_export_is_deleted_first(server: Server, tmp_path: Path) -> None:
    bucket = server.bucket("order")
    do(server, "s3://order/model", an_export(tmp_path / "one", **{"config.json": b"{ }"}))
    other = an_export(tmp_path / "two")
    whole: list[bool] = []

    def fault(request: Request) -> None:
        # A deletion, of one object or of a list.
        if request.method == "DELETE" or (request.method, request.path) == ("POST", "/order"):
            whole.append(WHOLE in names(bucket, "model"))

    with before(server, fault) as proxy:
        push(Push(to="s3://order/model"), "uid-1", other, access(proxy.url), lambda _: None)
    # The marker of the earlier export, config.json, and at the end the note of this push.
    assert whole == [True, False, True]
    require_copy(server, "order", "model", other)


def test_a_file_that_changed_after_it_was_verified_is_not_pushed(server: Server, tmp_path: Path) -> None:
    bucket, folder = server.bucket("changed"), an_export(tmp_path / "export")
    for name in ("model-00001-of-00002.safetensors", "tokenizer.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + b"!")
        with pytest.raises(TrainerError, match="not the file that was verified") as failure:
            do(server, "s3://changed/model", folder)
        assert failure.value.exit_code == ExitCode.BAD_EXPORT
        assert name not in names(bucket, "model")
        assert not looks_whole(bucket, "model")
        (folder / name).write_bytes(content)


def test_errors_of_the_store_are_outlived_or_told(server: Server, tmp_path: Path) -> None:
    bucket, folder = server.bucket("errors"), an_export(tmp_path / "export")
    with (
        before(server, lambda seen: error(403, "AccessDenied") if seen.method == "PUT" else None) as proxy,
        pytest.raises(TrainerError, match="access was refused") as failure,
    ):
        push(Push(to="s3://errors/model"), "uid-1", folder, access(proxy.url), lambda _: None)
    assert failure.value.exit_code == ExitCode.ACCESS_DENIED
    assert names(bucket, "model") == set()
    with before(
        server, lambda seen: error(503, "SlowDown") if seen.number == 1 and BEGUN not in seen.path else None
    ) as proxy:
        push(Push(to="s3://errors/model"), "uid-1", folder, access(proxy.url), lambda _: None)
    require_copy(server, "errors", "model", folder)
