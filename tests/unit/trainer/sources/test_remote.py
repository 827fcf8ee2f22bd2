"""Which downloads of an attempt that was interrupted are used."""

from pathlib import Path

import pytest

from dpo_trainer.sources import downloads, stores
from dpo_trainer.sources.kinds import Elsewhere
from dpo_trainer.sources.remote import in_store
from dpo_trainer.sources.stores import Stored

pytestmark = pytest.mark.unit


class OneObject:
    """A store whose only object has this tag."""

    def __init__(self, etag: str | None) -> None:
        self.stored = Stored("a.jsonl", 3, etag)

    def head(self, key: str, label: str) -> Stored:
        return self.stored


@pytest.mark.parametrize(
    ("etags", "count"),
    [(['"1"', '"1"'], 1), (['"1"', '"2"'], 2), ([None, None], 2), (['"1"', None], 2), (['"1"', '"2"', '"1"'], 3)],
)
def test_only_a_download_of_the_same_version_is_used_again(
    etags: list[str | None], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Stored] = []

    def download(store: OneObject, found: Stored, target: Path, *_: object) -> None:
        fetched.append(found)
        target.parent.mkdir(exist_ok=True)
        target.write_text(str(len(fetched)))

    monkeypatch.setattr(downloads, "download", download)
    for etag in etags:
        monkeypatch.setattr(stores, "open_store", lambda *_, etag=etag: OneObject(etag))
        source = in_store("s3://bucket/a.jsonl", Elsewhere(folder=tmp_path / "objects"))
        for _ in range(2):
            with source.open("a.jsonl") as file:
                assert file.read() == str(len(fetched)).encode()
    assert len(fetched) == count
    assert len(list((tmp_path / "objects").iterdir())) == 1
