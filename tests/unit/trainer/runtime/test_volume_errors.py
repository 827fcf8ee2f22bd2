"""Kinds of OSErrors of a volume."""

import errno

import pytest

from dpo_trainer.runtime.volume_errors import Kind, kind

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, Kind.FULL),
        (errno.EDQUOT, Kind.QUOTA),
        (errno.EROFS, Kind.READ_ONLY),
        (errno.EIO, Kind.FAILING),
        (errno.ESTALE, Kind.STALE),
        (errno.ENOTCONN, Kind.GONE),
        (errno.EACCES, Kind.DENIED),
        (errno.EMFILE, Kind.EXHAUSTED),
        (errno.ENOENT, None),
    ],
)
def test_errors_of_a_volume_have_a_kind(number, expected):
    assert kind(OSError(number, "text")) is expected


def test_an_error_without_a_number_has_no_kind():
    assert kind(OSError("text")) is None
