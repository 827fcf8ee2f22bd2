"""An export is copied to a real registry: once, whole, and the tag is there when all of it is."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_operator.api import names
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import PushReport
from dpo_operator.api.training import Push
from dpo_trainer.export import oci_layout
from dpo_trainer.export.oci_push import push_to_registry
from dpo_trainer.export.push import PROVENANCE
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.sources import registry as client
from tests import tied
from tests.contract.stores.conftest import Phases
from tests.contract.stores.test_push import an_export
from tests.registry import PASSWORD, Registry, config_file, serving
from tests.s3 import Answer, Request, before
from tests.unit.trainer.place import rows
from tests.unit.trainer.tiny import tiny_model, write_jsonl

pytestmark = pytest.mark.contract

# A process that pushes in chunks of a MiB, so that there are several, and is killed by the proxy.
CHUNK = 1 << 20
ALONE = f"""
import sys
from pathlib import Path
from dpo_operator.api.training import Push
from dpo_trainer.export.oci_push import push_to_registry
from dpo_trainer.sources import registry
registry.CHUNK = {CHUNK}
to, folder, notes = sys.argv[1:]
push_to_registry(Push(to=to, plain_http=True), "uid-1", Path(folder), Path(notes), lambda _: None)
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with serving(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(names.ENV_REGISTRY_CONFIG, str(tmp_path / "config.json"))
    monkeypatch.setattr(client, "CHUNK", CHUNK)
    monkeypatch.setattr(client, "_FIRST_WAIT", 0.01)


def small(folder: Path) -> Path:
    """An export of 2 MiB and small files."""
    return an_export(
        folder, **{"model-00001-of-00002.safetensors": os.urandom((2 << 20) + 77), "merged/config.json": b"{}"}
    )


def do(
    host: str,
    folder: Path,
    to: str = "team/model:v1",
    *,
    uid: str = "uid-1",
    password: str = PASSWORD,
    form: str | None = None,
) -> PushReport:
    """Push through a proxy, or to the registry itself. host: of either."""
    config_file(Path(os.environ[names.ENV_REGISTRY_CONFIG]), host, password)
    settings = Push.model_validate({"to": f"oci://{host}/{to}", "plainHttp": True, "format": form})
    return push_to_registry(settings, uid, folder, folder.with_name("pushing.json"), lambda _: None)


def pulled(registry: Registry, repository: str, tag: str) -> dict[str, bytes]:
    """Files of an image below /models, as a node of each platform would have them; each digest is compared."""
    index = registry.manifest(repository, tag)
    assert index is not None
    assert {one["platform"]["architecture"] for one in index["manifests"]} == {"amd64", "arm64"}
    found: list[dict[str, bytes]] = []
    for one in index["manifests"]:
        manifest = registry.manifest(repository, one["digest"])
        assert manifest is not None
        config = json.loads(registry.blob(repository, manifest["config"]["digest"]))
        assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
        files: dict[str, bytes] = {}
        for layer in manifest["layers"]:
            content = registry.blob(repository, layer["digest"])
            assert layer["digest"] == f"sha256:{sha256(content).hexdigest()}"
            assert layer["size"] == len(content)
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                for member in archive:
                    assert (member.mode, member.uid) == (0o755 if member.isdir() else 0o644, 0)
                    if (part := archive.extractfile(member)) is not None:
                        files[member.name] = part.read()
        found.append(files)
    assert found[0] == found[1]
    return found[0]


def of(folder: Path) -> dict[str, bytes]:
    return {f"models/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_image_is_pushed_once_and_pulled_whole(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Large files have a layer of their own.
    monkeypatch.setattr(oci_layout, "_LARGE", 1 << 20)
    folder = small(tmp_path / "export")
    report = do(registry.host, folder)
    assert report.to == f"oci://{registry.host}/team/model:v1"
    assert report.digest == sha256((folder / PROVENANCE).read_bytes()).hexdigest()
    assert registry.get(f"team/model/manifests/{report.manifest}", Accept=oci_layout.INDEX).status_code == 200
    assert pulled(registry, "team/model", "v1") == of(folder)
    assert not folder.with_name("pushing.json").exists()
    with before(registry, lambda _: None) as proxy:
        again = do(f"127.0.0.1:{proxy.port}", folder)
    assert again.manifest == report.manifest
    assert {seen.method for seen in proxy.seen} == {"GET"}
    # Another tag needs no blob again.
    with before(registry, lambda _: None) as proxy:
        do(f"127.0.0.1:{proxy.port}", folder, "team/model:v2")
    assert {seen.path.rpartition("/")[0] for seen in proxy.seen if seen.method not in ("GET", "HEAD")} == {
        "/v2/team/model/manifests"
    }


def test_an_artifact_has_each_file_under_its_name(registry: Registry, tmp_path: Path) -> None:
    folder = small(tmp_path / "export")
    do(registry.host, folder, "team/artifact:v1", form="artifact")
    manifest = registry.manifest("team/artifact", "v1")
    assert manifest is not None
    assert (manifest["artifactType"], manifest["config"]["mediaType"]) == (oci_layout.ARTIFACT, oci_layout.EMPTY)
    files = {
        f"models/{layer['annotations'][oci_layout.TITLE]}": registry.blob("team/artifact", layer["digest"])
        for layer in manifest["layers"]
    }
    assert files == of(folder)


def test_a_tag_of_somebody_else_is_left_alone(registry: Registry, tmp_path: Path) -> None:
    one, two = small(tmp_path / "one"), small(tmp_path / "two")
    do(registry.host, one, "team/taken:v1")
    with pytest.raises(TrainerError, match="not of this job; name a new tag") as failure:
        do(registry.host, two, "team/taken:v1", uid="uid-2")
    assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION
    assert pulled(registry, "team/taken", "v1") == of(one)
    # The same job's later export replaces it.
    do(registry.host, two, "team/taken:v1")
    assert pulled(registry, "team/taken", "v1") == of(two)


def test_a_wrong_password_is_named_and_not_shown(registry: Registry, tmp_path: Path) -> None:
    folder = small(tmp_path / "export")
    for password in ("wrong-password", ""):
        with pytest.raises(TrainerError, match="access was refused") as failure:
            do(registry.host, folder, "team/refused:v1", password=password)
        assert failure.value.exit_code == ExitCode.ACCESS_DENIED
        assert "spec.export.push.credentialsSecretRef" in str(failure.value)
        assert "wrong-password" not in str(failure.value)
    assert registry.manifest("team/refused", "v1") is None


def test_a_changed_file_is_not_pushed(registry: Registry, tmp_path: Path) -> None:
    for form in ("image", "artifact"):
        folder = small(tmp_path / form)
        (folder / "config.json").write_bytes(b"[]")
        with pytest.raises(TrainerError, match="is not the") as failure:
            do(registry.host, folder, "team/changed:v1", form=form)
        assert failure.value.exit_code == ExitCode.BAD_EXPORT
    assert registry.manifest("team/changed", "v1") is None


def test_errors_and_cut_connections_are_survived(registry: Registry, tmp_path: Path) -> None:
    folder = small(tmp_path / "export")
    faults = {
        ("PATCH", 2): Answer(503), ("PATCH", 3): "cut", ("PUT", 1): "cut", ("POST", 1): Answer(429), ("HEAD", 1): Answer(500), ("GET", 1): Answer(502),
    }  # fmt: skip
    numbers: dict[str, int] = {}

    def fault(request: Request) -> Answer | str | None:
        numbers[request.method] = numbers.get(request.method, 0) + 1
        return faults.pop((request.method, numbers[request.method]), None)

    with before(registry, fault) as proxy:
        do(f"127.0.0.1:{proxy.port}", folder, "team/faults:v1")
    assert not faults
    assert pulled(registry, "team/faults", "v1") == of(folder)

    with before(registry, lambda _: Answer(503)) as proxy, pytest.raises(TrainerError, match="HTTP 503") as failure:
        do(f"127.0.0.1:{proxy.port}", folder, "team/down:v1")
    assert failure.value.exit_code == ExitCode.SOURCE_UNAVAILABLE


def test_a_push_that_is_killed_at_any_write_ends_up_whole(registry: Registry, tmp_path: Path) -> None:
    sent = []
    for number in count(1):
        folder, to = small(tmp_path / f"export-{number}"), f"killed/model-{number}"
        processes: list[subprocess.Popen[bytes]] = []
        writes = count(1)

        def fault(
            request: Request, *, last: int = number, writes: Iterator[int] = writes, running: Any = processes
        ) -> None:
            """Kills the process at one of its writes, which still reaches the registry."""
            if request.method in ("PUT", "POST", "PATCH") and next(writes) == last:
                running[0].send_signal(signal.SIGKILL)
                running[0].wait()

        with before(registry, fault) as proxy:
            host = f"127.0.0.1:{proxy.port}"
            keys = config_file(folder.with_name("keys.json"), host)
            words = [sys.executable, "-c", ALONE, f"oci://{host}/{to}:v1", folder, folder.with_name("pushing.json")]
            processes.append(tied.popen(words, env={**os.environ, names.ENV_REGISTRY_CONFIG: str(keys)}))
            died = processes[0].wait(timeout=120) == -signal.SIGKILL
            if (there := registry.manifest(to, "v1")) is not None:
                assert there["annotations"][oci_layout.JOB] == "uid-1"
                assert pulled(registry, to, "v1") == of(folder)
            if not died:
                break
            already = len(proxy.seen)
            do(host, folder, f"{to}:v1")
        sent.append(sum(seen.method == "PATCH" for seen in proxy.seen[already:]))
        assert pulled(registry, to, "v1") == of(folder)
        assert not folder.with_name("pushing.json").exists()
    # Begin, three chunks and end of the layer; two configs; three manifests.
    assert number > 11
    # Each chunk that had arrived before is not sent again.
    assert sent[:5] == [3, 2, 1, 0, 0]


def test_the_export_phase_pushes_with_the_mounted_secret(registry: Registry, phases: Phases, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    # The same model with all of its weights.
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(model)
    push = {"to": f"oci://{registry.host}/team/run:v1", "plainHttp": True, "credentialsSecretRef": {"name": "writer"}}
    spec = {
        "model": {"name": str(model)},
        "data": {"train": {"source": str(write_jsonl(tmp_path / "pairs.jsonl", rows(8)))}, "maxLength": 64},
        "training": {"globalBatchSize": 4, "maxSteps": 1, "learningRate": 0.01, "precision": "fp32"},
        "evaluation": {"samples": 0},
        "gpusPerNode": 0,
        "export": {"push": push},
    }
    config_file(tmp_path / "config.json", registry.host, "wrong-password")
    assert (phases.run("prepare", spec), phases.run("launch", spec)) == (0, 0), phases.output
    assert phases.run("export", spec) == ExitCode.ACCESS_DENIED
    assert "The model was exported to export on the volume" in phases.termination("export")["message"]
    # Another attempt exports nothing again.
    config_file(tmp_path / "config.json", registry.host)
    made = (phases.work / "export" / PROVENANCE).stat().st_mtime_ns
    assert phases.run("export", spec) == 0, phases.output
    assert (phases.work / "export" / PROVENANCE).stat().st_mtime_ns == made
    pushed = PushReport.model_validate(phases.termination("export")["pushed"])
    assert registry.get(f"team/run/manifests/{pushed.manifest}", Accept=oci_layout.INDEX).status_code == 200
    assert pulled(registry, "team/run", "v1") == of(phases.work / "export")
    report = (phases.work / "report" / "report.txt").read_text()
    assert f"COPY --from={registry.host}/team/run:v1 /models /models" in report
    assert f"manifest: {pushed.manifest}" in report
    assert f"| pushed to | `oci://{registry.host}/team/run:v1` |" in (phases.work / "export" / "README.md").read_text()
    canary = [path for path in phases.work.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert not canary
    assert PASSWORD not in phases.output
