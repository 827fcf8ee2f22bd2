"""What an error response says, and what it does not."""

import json

import pytest

from dpo_operator.kube.client import error_of

pytestmark = pytest.mark.unit

CLAIM = "/api/v1/namespaces/team/persistentvolumeclaims/pairs-work"
STATUS = "/apis/dpo-operator.dev/v1alpha1/namespaces/team/dpojobs/pairs/status"
NOT_FOUND = {
    "kind": "Status",
    "apiVersion": "v1",
    "status": "Failure",
    "reason": "NotFound",
    "code": 404,
    "message": 'persistentvolumeclaims "pairs-work" not found',
    "details": {"name": "pairs-work", "kind": "persistentvolumeclaims"},
}


def gone(body, path=CLAIM, code=404) -> bool:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return error_of(code, text, "", path).is_gone


def test_only_the_api_servers_own_words_say_that_an_object_is_gone():
    assert gone(NOT_FOUND)
    job = {"name": "pairs", "group": "dpo-operator.dev", "kind": "dpojobs"}
    assert gone(NOT_FOUND | {"details": job}, STATUS)


@pytest.mark.parametrize(
    "body",
    [
        b"404 page not found\n",
        b"",
        [],
        "gone",
        NOT_FOUND | {"kind": "Error"},
        NOT_FOUND | {"reason": "Expired"},
        NOT_FOUND | {"details": {}},
        NOT_FOUND | {"details": None},
        NOT_FOUND | {"details": {"name": "team", "kind": "namespaces"}},
        NOT_FOUND | {"details": {"name": "pairs-work", "kind": "pods"}},
        NOT_FOUND | {"details": {"name": "other-work", "kind": "persistentvolumeclaims"}},
    ],
)
def test_any_other_404_says_nothing_about_the_object(body):
    assert not gone(body)


def test_another_code_never_says_that_an_object_is_gone():
    assert not gone(NOT_FOUND, code=503)
