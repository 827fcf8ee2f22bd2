"""The operator's /metrics, and clients that want nothing from it but its threads and memory."""

import socket
import threading
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

from dpo_operator.metrics import server as served
from dpo_operator.metrics.server import MAX_OF_ADDRESS, MetricsServer

pytestmark = pytest.mark.unit


class Rendered:
    """A collector that counts its renderings."""

    times = 0

    def collect(self) -> Iterator[GaugeMetricFamily]:
        self.times += 1
        yield GaugeMetricFamily("some_value", "A value.", value=7)


@pytest.fixture
def collector() -> Rendered:
    return Rendered()


@pytest.fixture
def server(collector: Rendered, monkeypatch: pytest.MonkeyPatch) -> Iterator[MetricsServer]:
    monkeypatch.setattr(served, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(served, "SHARED_SECONDS", 60.0)
    registry = CollectorRegistry()
    registry.register(collector)
    collector.times = 0
    made = MetricsServer(lambda: generate_latest(registry), 0)
    yield made
    made.close()


def connect(server: MetricsServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def scrape(server: MetricsServer) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_scrapes_share_a_rendering(server: MetricsServer, collector: Rendered):
    assert all("some_value 7.0" in scrape(server) for _ in range(5))
    assert collector.times == 1


def test_idle_and_slow_connections_end_and_hold_no_thread(server: MetricsServer):
    before = threading.active_count()
    idle = [connect(server) for _ in range(MAX_OF_ADDRESS)]
    idle[0].sendall(b"GET /metrics")
    # One more from the same address is closed at once.
    one_more = connect(server)
    assert ended(one_more)
    assert threading.active_count() == before
    assert all(ended(each) for each in idle)
    assert "some_value" in scrape(server)


def ended(client: socket.socket) -> bool:
    """Whether the server ends the connection; False after the client's time-out."""
    with client:
        try:
            return client.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


def test_a_request_without_end_is_cut_off(server: MetricsServer):
    with connect(server) as client, pytest.raises(OSError, match=r"reset|pipe"):
        client.sendall(b"X-More: 1\r\n" * 10**7)
    assert "some_value" in scrape(server)
