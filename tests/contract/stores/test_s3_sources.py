"""Data and models from a real store that speaks S3, through prepare's own door; and what may go wrong on the way."""

import json
import time
from pathlib import Path

import obstore
import pytest

from dpo_operator.api import access as api
from dpo_trainer.sources.access import Access
from dpo_trainer.sources.downloads import PART
from dpo_trainer.sources.kinds import Elsewhere
from dpo_trainer.sources.remote import in_store
from tests.contract.stores.conftest import Phases
from tests.s3 import KEY, SECRET, Answer, Proxy, Request, Server, before, error, upload
from tests.unit.trainer.place import rows
from tests.unit.trainer.tiny import tiny_model, write_jsonl

pytestmark = pytest.mark.contract


@pytest.fixture(scope="session")
def bucket(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bucket with a model in two shards, and pairs in two files."""
    place = tmp_path_factory.mktemp("inputs")
    client = server.bucket("inputs")
    upload(client, tiny_model(place / "model", shards=2), "models/tiny")
    pairs = place / "pairs"
    pairs.mkdir()
    write_jsonl(pairs / "part-1.jsonl", rows(12))
    write_jsonl(pairs / "part-2.jsonl", rows(8, extra="x"))
    upload(client, pairs, "pairs")
    return "inputs"


def spec(url: str, bucket: str = "inputs", **access: object) -> dict:
    return {
        "model": {"name": f"s3://{bucket}/models/tiny"},
        "data": {"train": {"source": f"s3://{bucket}/pairs", "format": "pairs"}},
        "access": {"s3": {"endpoint": url}, "credentialsSecretRef": {"name": "keys"}, **access},
    }


def refused(phases: Phases, *parts: str) -> None:
    """The phase's message holds these words, nothing looks whole, and the key is nowhere."""
    message = phases.termination("prepare")["message"]
    assert all(part in message for part in parts), message
    assert not (phases.work / "prepared.json").exists()
    assert not (phases.work / "model").exists()
    assert phases.leaks() == []


def test_data_and_model_come_from_a_bucket(server: Server, bucket: str, phases: Phases) -> None:
    assert phases.run("prepare", spec(server.url)) == 0, phases.output
    made = json.loads((phases.work / "prepared.json").read_text())
    assert (made["report"]["train_pairs"], made["model"]["kind"]) == (20, "s3")
    assert sorted(made["inputs"]["train"]["files"]) == ["part-1.jsonl", "part-2.jsonl"]
    shards = [path.name for path in (phases.work / "model").glob("*.safetensors")]
    assert len(shards) == 2
    for name in shards:
        stored = server.folder / "inputs/models/tiny" / name
        assert (phases.work / "model" / name).read_bytes() == stored.read_bytes()
    assert phases.leaks() == []
    hidden = [path for path in phases.work.rglob(".*") if path.suffix in (".partial", ".parts")]
    assert hidden == []


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"AWS_ACCESS_KEY_ID": "AKIAOTHER"}, ("AWS_ACCESS_KEY_ID", "spec.access.credentialsSecretRef")),
        ({"AWS_SECRET_ACCESS_KEY": "other"}, ("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY")),
        ({"AWS_SECRET_KEY": "x"}, ("expected keys among AWS_ACCESS_KEY_ID", "found AWS_SECRET_KEY")),
    ],
)
def test_a_wrong_key_is_told(
    server: Server, bucket: str, phases: Phases, keys: dict[str, str], said: tuple[str, ...]
) -> None:
    phases.keys |= keys
    assert phases.run("prepare", spec(server.url)) == (78 if "AWS_SECRET_KEY" in keys else 77)
    refused(phases, *said)


def test_no_key_at_all_is_told(server: Server, bucket: str, phases: Phases) -> None:
    phases.keys.clear()
    assert phases.run("prepare", spec(server.url)) == 77
    refused(phases, "access was refused", "spec.access.credentialsSecretRef", "pod.serviceAccountName")


def test_a_bucket_and_an_object_that_are_not_there(server: Server, bucket: str, phases: Phases) -> None:
    assert phases.run("prepare", spec(server.url, "nowhere")) == 66
    refused(phases, "no such bucket", "s3://nowhere/models/tiny")
    missing = spec(server.url)
    missing["model"]["name"] = "s3://inputs/models/none"
    assert phases.run("prepare", missing) == 66
    refused(phases, "s3://inputs/models/none", "no object has this name")


def test_an_endpoint_that_does_not_answer(bucket: str, phases: Phases) -> None:
    assert phases.run("prepare", spec("http://127.0.0.1:9")) == 69
    refused(phases, "http://127.0.0.1:9 gave no answer", "network.open")


def test_an_expired_key_is_told_without_quoting_it(server: Server, bucket: str, phases: Phases) -> None:
    with before(server, lambda _: error(400, "ExpiredToken")) as proxy:
        assert phases.run("prepare", spec(proxy.url)) == 77
    refused(phases, "the key has expired", "ExpiredToken", "spec.access.credentialsSecretRef")


def test_bursts_of_errors_and_cut_connections_are_outlived(server: Server, bucket: str, phases: Phases) -> None:
    def fault(request: Request) -> Answer | str | None:
        if request.method != "GET" or not request.path.endswith(
            ("/config.json", "1-of-00002.safetensors", "part-2.jsonl")
        ):
            return None
        return error(503, "SlowDown") if request.number <= 2 else "cut" if request.number == 3 else None

    with before(server, fault) as proxy:
        assert phases.run("prepare", spec(proxy.url)) == 0, phases.output
    assert [seen.number for seen in proxy.seen if seen.path.endswith("part-2.jsonl") and seen.method == "GET"] == [
        1,
        2,
        3,
        4,
    ]
    for name in ("model-00001-of-00002.safetensors", "config.json"):
        stored = server.folder / "inputs/models/tiny" / name
        assert (phases.work / "model" / name).read_bytes() == stored.read_bytes()


def test_an_object_that_changes_while_it_is_read(server: Server, phases: Phases, tmp_path: Path) -> None:
    client = server.bucket("changing")
    upload(client, tiny_model(tmp_path / "model"), "models/tiny")
    write_jsonl(tmp_path / "pairs.jsonl", rows(20))
    upload(client, tmp_path, "")  # the pairs too
    obstore.put(client, "pairs/pairs.jsonl", (tmp_path / "pairs.jsonl").read_bytes())

    def fault(request: Request) -> None:
        if request.method == "GET" and request.path.endswith("model.safetensors"):
            content = (server.folder / "changing/models/tiny/model.safetensors").read_bytes()
            obstore.put(client, "models/tiny/model.safetensors", content[:-1] + b"!")

    with before(server, fault) as proxy:
        assert phases.run("prepare", spec(proxy.url, "changing")) == 69
    refused(phases, "s3://changing/models/tiny/model.safetensors", "changed while it was read")


def test_a_download_of_an_object_that_was_replaced_is_not_used(server: Server, tmp_path: Path) -> None:
    client, folder = server.bucket("replaced"), tmp_path / "objects"
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    elsewhere = Elsewhere(Access(api.Access.model_validate({"s3": {"endpoint": server.url}}), keys), folder=folder)
    for content in (b'{"a": 1}\n', b'{"a": 2}\n'):
        obstore.put(client, "pairs/a.jsonl", content)
        # Each time as an attempt of prepare that comes after one that was interrupted.
        with in_store("s3://replaced/pairs", elsewhere).open("a.jsonl") as file:
            assert file.read() == content
    assert len(list(folder.iterdir())) == 1


def test_a_killed_download_goes_on_where_it_was(server: Server, phases: Phases, tmp_path: Path) -> None:
    client = server.bucket("large")
    upload(client, tiny_model(tmp_path / "model"), "models/tiny")
    line = json.dumps(rows(1)[0] | {"padding": "x" * 1_000_000}).encode() + b"\n"
    size = obstore.put(client, "pairs/a.jsonl", line * 60) and 60 * len(line)
    assert size > 3 * PART

    def slow(request: Request) -> None:
        if request.method == "GET" and request.path.endswith("a.jsonl") and request.number > 2:
            time.sleep(5)

    def parts() -> list[str]:
        lists = list((phases.work / "data").rglob(".*.parts"))
        return lists[0].read_text().splitlines()[1:] if lists else []

    with before(server, slow) as proxy:
        process = phases.start("prepare", spec(proxy.url, "large"))
        until = time.monotonic() + 120
        while len(parts()) < 2:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        process.kill()
        process.communicate()
    done = len(parts())
    with before(server, lambda _: None) as proxy:
        assert phases.run("prepare", spec(proxy.url, "large")) == 0, phases.output
    assert _reads(proxy, "a.jsonl") == -(-size // PART) - done
    assert json.loads((phases.work / "prepared.json").read_text())["report"]["train_pairs"] == 60


def _reads(proxy: Proxy, name: str) -> int:
    return sum(seen.method == "GET" and seen.path.endswith(name) for seen in proxy.seen)
