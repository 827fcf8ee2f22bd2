"""What an object store says of an object, in one form whatever the request was."""

import pytest

from dpo_trainer.sources.stores import Store

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("listed", "asked"), [("0x8DC", '"0x8DC"'), ('"abc-2"', '"abc-2"'), ('W/"abc"', 'W/"abc"'), (None, None)]
)
def test_an_object_of_a_list_is_the_one_asked_for(
    listed: str | None, asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Azure answers a list with tags without quotes, and any other request with them.
    meta = {"path": "a/b.jsonl", "size": 3}
    monkeypatch.setattr("obstore.list", lambda *_: [[meta | {"e_tag": listed}]])
    monkeypatch.setattr("obstore.head", lambda *_: meta | {"e_tag": asked})
    store = Store("az", None, None, "spec.access.credentialsSecretRef")
    found = store.below("a", "az://c/a")
    assert found == [store.head("a/b.jsonl", "az://c/a/b.jsonl")]
    assert found[0].etag == asked
