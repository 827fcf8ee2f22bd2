"""Texts of errors."""

import pytest

from dpo_trainer.runtime.errors import first_line, invalid_configuration

pytestmark = pytest.mark.unit


def test_the_first_line_of_a_message_is_shortened():
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(ValueError("x" * 400)) == "x" * 300
    assert first_line(ValueError("xyz"), 2) == "xy"
    assert first_line(ValueError()) == ""


def test_a_lone_surrogate_in_a_message_is_escaped():
    assert str(invalid_configuration("column \udce9")) == "column \\udce9"
