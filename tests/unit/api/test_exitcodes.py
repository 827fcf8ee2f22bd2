import pytest

from dpo_operator.api.exitcodes import TABLE, UNKNOWN, ExitCode, info

pytestmark = pytest.mark.unit


def test_every_failure_has_a_row() -> None:
    assert set(TABLE) == set(ExitCode) - {ExitCode.OK}


def test_reasons_are_distinct_and_fit_a_condition() -> None:
    reasons = [row.reason for row in TABLE.values()]
    assert len(set(reasons)) == len(reasons)
    assert all(reason.isalnum() and reason[0].isupper() for reason in reasons)


@pytest.mark.parametrize("code", [1, 2, 99, 139, -5, 100000])
def test_a_code_outside_the_table_counts(code: int) -> None:
    assert info(code) is UNKNOWN
    assert info(code).failure_class == "counted"


def test_what_a_user_must_mend_is_not_tried_again() -> None:
    assert info(ExitCode.BAD_DATASET).failure_class == "configuration"
    assert info(ExitCode.SIGTERM).failure_class == "infrastructure"
    assert info(ExitCode.PEER_LOST).failure_class == "secondary"
