"""The wait for rank 0's name."""

import socket

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.distributed.rendezvous import timeout_from_environment, wait_for_name
from dpo_trainer.runtime.errors import TrainerError

pytestmark = pytest.mark.unit


class Dns:
    """A resolver that knows a name from a given second, with its clock."""

    def __init__(self, known_from: float) -> None:
        self.now, self.known_from, self.said = 0.0, known_from, []

    def resolve(self, host: str) -> None:
        if self.now < self.known_from:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, timeout: float) -> None:
        wait_for_name(
            "job-train-1-0.job-train", self.said.append, timeout=timeout, resolve=self.resolve, sleep=self.sleep,
            clock=lambda: self.now,
        )  # fmt: skip


def test_a_known_name_logs_nothing():
    dns = Dns(0)
    dns.wait(300)

    assert (dns.now, dns.said) == (0, [])


def test_a_late_name_is_waited_for_with_log_lines():
    dns = Dns(40)
    dns.wait(300)

    assert dns.now == 40
    assert [line.partition(": ")[2] for line in dns.said] == [
        f"Name or service not known ({at} of 300 s)" for at in (0, 15, 30)
    ]


def test_a_name_that_never_resolves_names_the_checks():
    dns = Dns(1e9)
    with pytest.raises(TrainerError, match=r"job-train-1-0\.job-train, did not resolve within 60 s") as caught:
        dns.wait(60)

    assert caught.value.exit_code is ExitCode.PEER_LOST
    assert 60 <= dns.now <= 61


def test_an_address_resolves_for_real():
    wait_for_name("127.0.0.1", print, timeout=0)


@pytest.mark.parametrize(("text", "seconds"), [(None, 300.0), ("45", 45.0), ("soon", 300.0), ("-3", 0.0)])
def test_the_time_out_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, text: str | None, seconds: float):
    monkeypatch.delenv("DPO_RENDEZVOUS_TIMEOUT", raising=False)
    if text is not None:
        monkeypatch.setenv("DPO_RENDEZVOUS_TIMEOUT", text)

    assert timeout_from_environment() == seconds
