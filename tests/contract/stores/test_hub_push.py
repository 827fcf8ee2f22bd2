"""An export is copied to a hub that speaks its API, on the loopback interface, in one commit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_trainer.export.push import PROVENANCE, WHOLE
from tests.contract.stores.test_push import an_export
from tests.unit.trainer.hub_server import COMMIT, TOKEN, Hub, Repo, serving

pytestmark = pytest.mark.contract

# The hub's client reads its address when it is imported, so each push is a process of its own, as in a pod.
ALONE = """
import json, sys
from pathlib import Path
from dpo_operator.api import access as api
from dpo_operator.api.training import Push
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.sources.access import Access
folder, url, token, uid, push = sys.argv[1:]
access = Access(api.Access.model_validate({"hub": {"endpoint": url}}), {"HF_TOKEN": token})
access.apply(Path(folder).parent / "cache")
from dpo_trainer.export.hub_push import push_to_hub
try:
    print(push_to_hub(Push.model_validate_json(push), uid, Path(folder), access, lambda _: None).model_dump_json())
except TrainerError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def do(
    hub: Hub, folder: Path, token: str = TOKEN, uid: str = "uid-1", **settings: object
) -> "subprocess.CompletedProcess[str]":
    argv = [
        sys.executable,
        "-c",
        ALONE,
        str(folder),
        hub.url,
        token,
        uid,
        json.dumps({"to": "hf://org/aligned", **settings}),
    ]
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    home = {"HF_HOME": str(folder.parent / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(argv, env={**clean, **home}, capture_output=True, text=True, timeout=120)


def test_an_export_becomes_one_commit_of_a_private_repository(tmp_path: Path) -> None:
    folder = an_export(tmp_path / "export")
    with serving({}) as hub:
        done = do(hub, folder, commitMessage="DPO, run 7")
        assert done.returncode == 0, done.stderr
        repo = hub.repos["models/org/aligned"]
        assert repo.access == "private"
        assert set(repo.files) == {".gitattributes", WHOLE, *(path.name for path in folder.iterdir())}
        for path in folder.iterdir():
            assert repo.files[path.name] == path.read_bytes()
        assert json.loads(done.stdout)["commit"] == COMMIT
        assert do(hub, folder, commitMessage="again").stdout == done.stdout
        assert hub.commits == ["DPO, run 7"]
        assert TOKEN not in done.stdout + done.stderr
        # A commit that was lost: the large files are there, and are not sent again.
        repo.files, hub.requests[:] = {".gitattributes": b""}, []
        assert do(hub, folder).returncode == 0
        assert not [request for request in hub.requests if request.startswith("PUT")]
        assert json.loads(repo.files[PROVENANCE])["files"]


def test_a_repository_of_somebody_else_and_a_wrong_token(tmp_path: Path) -> None:
    folder = an_export(tmp_path / "export")
    with serving({"models/org/aligned": Repo({"config.json": b"theirs"})}) as hub:
        taken = do(hub, folder)
        assert (taken.returncode, "not of this job's export (config.json)" in taken.stderr) == (78, True)
        assert hub.repos["models/org/aligned"].files == {"config.json": b"theirs"}
    with serving({}) as hub:
        refused = do(hub, folder, token="hf_wrong")
        assert refused.returncode == 77
        assert "hf_wrong" not in refused.stderr


def test_a_repository_that_is_not_private_is_not_written_to(tmp_path: Path) -> None:
    folder = an_export(tmp_path / "export")
    with serving({"models/org/aligned": Repo({".gitattributes": b""})}) as hub:
        refused = do(hub, folder)
        assert (refused.returncode, "is not private; make it private" in refused.stderr) == (78, True), refused.stderr
        assert hub.repos["models/org/aligned"].files == {".gitattributes": b""}
        assert not hub.blobs
        assert do(hub, folder, private=False).returncode == 0


def test_a_commit_without_an_answer_is_found_again(tmp_path: Path) -> None:
    folder = an_export(tmp_path / "export")
    with serving({}) as hub:
        hub.lost = True
        done = do(hub, folder)
        assert (done.returncode, len(hub.commits)) == (0, 1), done.stderr
        assert json.loads(done.stdout)["commit"] == COMMIT
        # Somebody else's commit came between: what is there is not this export.
        hub.repos["models/org/aligned"].files = {".gitattributes": b""}
        refused = do(hub, folder)
        assert (refused.returncode, "somebody else wrote" in refused.stderr) == (69, True), refused.stderr


def test_files_that_others_commit_into_the_repository_stay(tmp_path: Path) -> None:
    first, second = an_export(tmp_path / "first", **{"old.json": b"{}"}), an_export(tmp_path / "second")
    with serving({}) as hub:
        assert do(hub, first).returncode == 0
        repo = hub.repos["models/org/aligned"]
        repo.files["precious.txt"] = b"keep"
        refused = do(hub, second)
        assert (refused.returncode, "not of this job's export (precious.txt)" in refused.stderr) == (78, True)
        del repo.files["precious.txt"]
        assert do(hub, second).returncode == 0
        assert set(repo.files) == {".gitattributes", WHOLE, *(path.name for path in second.iterdir())}
