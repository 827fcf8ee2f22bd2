"""What a pod's server says of clients that fail."""

import socket
import struct
import threading

import pytest

from dpo_trainer.telemetry.prometheus import TrainerMetrics
from dpo_trainer.telemetry.server import TelemetryServer

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("fault", "said"), [(None, ""), (ValueError("no status"), "ValueError: no status")])
def test_a_client_that_did_not_wait_is_no_news(
    fault: Exception | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, asked = threading.Event(), threading.Event()

    def status() -> str:
        asked.set()
        gone.wait(10)
        if fault is not None:
            raise fault
        return "x" * (8 << 20)

    server = TelemetryServer(TrainerMetrics(rank_zero=True).registry, status, port=0, address="127.0.0.1")
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        # Closed with a reset.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(b"GET /status HTTP/1.0\r\n\r\n")
        assert asked.wait(10)
    gone.set()
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(10)
    server.close()
    err = capsys.readouterr().err
    assert said in err
    assert bool(err) is bool(said)
