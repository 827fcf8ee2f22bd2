"""The API server's clock, from the Date of its responses."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from dpo_operator.kube.server_clock import DOUBT_SECONDS, SLACK_SECONDS, ServerClock

pytestmark = pytest.mark.unit

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Server:
    """An API server's clock and a machine's monotonic one, which both go on when time passes."""

    def __init__(self) -> None:
        self.time, self.monotonic = NOON, 1000.0
        self.clock = ServerClock(lambda: self.monotonic)

    def passes(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        self.monotonic += seconds

    def answers(self, wrong_by: timedelta = timedelta()) -> None:
        self.clock.observe(format_datetime(self.time + wrong_by, usegmt=True))

    @property
    def error(self) -> float:
        return abs((self.clock.now() - self.time).total_seconds())


def test_time_is_the_servers_and_not_this_machines():
    server = Server()
    assert abs((server.clock.now() - datetime.now(UTC)).total_seconds()) < 5
    server.answers()
    assert server.error < 1
    assert server.clock.now().tzinfo is UTC
    server.passes(3600)
    assert server.error < 1


def test_dates_of_whole_seconds_give_a_tenth_of_a_second():
    server = Server()
    for _ in range(50):
        server.passes(0.93)
        server.answers()
    assert server.error < 0.1


def test_time_does_not_jump_because_one_server_of_several_is_wrong():
    server = Server()
    server.answers()
    for _ in range(100):
        server.passes(2)
        server.answers(timedelta(hours=1))
        server.passes(2)
        server.answers()
        assert server.error < SLACK_SECONDS


def test_a_corrected_server_clock_is_followed_after_a_while():
    server = Server()
    server.answers(timedelta(hours=-1))
    assert server.error > 3500
    waited = 0.0
    while server.error > 1 and waited < 10 * DOUBT_SECONDS:
        server.passes(5)
        server.answers()
        waited += 5
    assert DOUBT_SECONDS <= waited <= DOUBT_SECONDS + 10


@pytest.mark.parametrize("text", ["", "yesterday", "Thu, 99 Jan 2026 12:00:00 GMT", "0" * 300])
def test_text_that_is_not_a_date_is_ignored(text: str):
    server = Server()
    server.answers()
    server.clock.observe(text)
    assert server.error < 1
