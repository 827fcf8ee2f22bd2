"""The ways to a store or a hub: through a proxy, with certificates of its own, and to the files of a dataset."""

import os
import subprocess
import sys
from pathlib import Path

import obstore
import pytest

from dpo_operator.api import access as api
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.sources import stores
from dpo_trainer.sources.access import Access
from tests.cluster.rig.pki import Authority
from tests.s3 import KEY, SECRET, Server, before, serving
from tests.unit.trainer.hub_server import COMMIT, Repo
from tests.unit.trainer.hub_server import serving as hub_serving

pytestmark = pytest.mark.contract

KEYS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}


def test_a_store_is_reached_through_a_proxy_alone(server: Server) -> None:
    obstore.put(server.bucket("far"), "pairs/a.jsonl", b"{}")
    with before(server, lambda _: None) as proxy:
        settings = {"s3": {"endpoint": "http://store.invalid:9000"}, "proxy": {"url": proxy.url}}
        store = stores.open_store("s3://far/pairs", Access(api.Access.model_validate(settings), KEYS))
        assert [one.key for one in store.below("pairs", "s3://far/pairs")] == ["pairs/a.jsonl"]
        assert proxy.seen


def test_a_store_with_a_certificate_of_the_companys_own(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "pki")
    pair = authority.issue("store", "store", hosts=["IP:127.0.0.1"])
    (tmp_path / "s3").mkdir()
    with serving(tmp_path / "s3", "--cert", pair.certificate, "--key", pair.key) as server:
        (server.folder / "safe").mkdir()
        settings = api.Access.model_validate({"s3": {"endpoint": f"https://127.0.0.1:{server.port}"}})
        trusting = Access(settings, KEYS, certificates=authority.own.certificate.read_text())
        store = stores.open_store("s3://safe/x", trusting)
        store.put("x/a", iter([b"content"]), 7, {}, "s3://safe/x/a")
        assert [one.key for one in store.below("x", "s3://safe/x")] == ["x/a"]
        with pytest.raises(TrainerError, match=r"certificate.*spec\.access\.caBundleRef"):
            stores.open_store("s3://safe/x", Access(settings, KEYS)).below("x", "s3://safe/x")


# The hub's client reads its address when it is imported, so each case is a process of its own, as in a pod.
READ = """
import json, sys
from pathlib import Path
from dpo_operator.api import access as api
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.sources.access import Access
url, hub, folder = sys.argv[1:]
access = Access(api.Access.model_validate({"hub": {"endpoint": hub}}))
access.apply(Path(folder))
from dpo_trainer.sources import Elsewhere, resolve
try:
    source = resolve(url, claims=Path(folder), elsewhere=Elsewhere(access, None, Path(folder) / "files"))
    print(json.dumps({name: source.open(name).read().decode() for name in sorted(source.sizes)}))
except TrainerError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("data/a.jsonl", 0, '{"a.jsonl": "{}\\n"}'),
        ("data", 0, '{"a.jsonl": "{}\\n", "sub/b.parquet": "PAR1"}'),
        ("none.jsonl", 66, f"no file or folder none.jsonl at {COMMIT}"),
        ("broken.parquet", 69, "has not the hub's digest"),
    ],
)
def test_files_of_a_hubs_dataset(tmp_path: Path, path: str, code: int, said: str) -> None:
    files = {"data/a.jsonl": b"{}\n", "data/sub/b.parquet": b"PAR1", "broken.parquet": b"right"}
    repo = Repo(files, sent={**files, "broken.parquet": b"wrong"})
    with hub_serving({"datasets/org/pairs": repo}) as hub:
        argv = [sys.executable, "-c", READ, f"hf://datasets/org/pairs@main/{path}", hub.url, str(tmp_path)]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        done = subprocess.run(argv, env={**clean, "HF_HOME": str(tmp_path / "home")}, capture_output=True, text=True)
    assert (done.returncode, said in done.stdout) == (code, True), done.stdout + done.stderr
