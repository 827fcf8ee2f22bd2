"""Log records: errors quote what tenants wrote."""

import io
import logging

import pytest

from dpo_operator.kopf_settings import OneLineEach

pytestmark = pytest.mark.unit


def test_an_error_can_forge_no_line_of_the_log():
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("INFO %(message)s"))
    handler.addFilter(OneLineEach())
    logger = logging.Logger("of this test")
    logger.addHandler(handler)
    try:
        raise ValueError("bad\nINFO forged\x1b[2J")
    except ValueError as error:
        logger.exception("%s: %s", "ns/job", error)
    lines = written.getvalue().splitlines()
    assert lines[0] == "INFO ns/job: bad INFO forged�[2J"
    assert any("ValueError: bad" in line for line in lines)
    assert not any(line.startswith("INFO forged") for line in lines)
    assert "\x1b" not in written.getvalue()
