"""The operator as users run it: `python -m dpo_operator` in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests import tied
from tests.apiserver.hands import wait_until
from tests.ports import free_port

# Most tests are about what happens to a job that may run. What an administrator refuses has tests of its own.
EVERYTHING = json.dumps(
    {name: ["*"] for name in ("images", "tolerations", "priorityClasses", "runtimeClasses")}
    | {"nodeSelectors": ["*", "node-role.kubernetes.io/*"], "env": ["*"]}
    | {"hostNetwork": True, "unisolated": True, "unlabelledClaims": True}
)


@dataclass
class OperatorProcess:
    """One operator. It can be killed and started again; log: file that all of its lives write to.

    environment: more variables.
    """

    kubeconfig: Path
    namespace: str
    log: Path
    resync_seconds: float = 5.0
    settings: dict[str, str] = field(default_factory=dict)
    metrics_port: int = field(default_factory=free_port)
    health_port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it's healthy."""
        environment = (
            os.environ
            | {
                "KUBECONFIG": str(self.kubeconfig),
                "DPO_TRAINER_IMAGE": "registry.example/trainer:1",
                "WATCH_NAMESPACES": self.namespace,
                "DPO_METRICS_PORT": str(self.metrics_port),
                "DPO_HEALTH_PORT": str(self.health_port),
                "DPO_RESYNC_SECONDS": str(self.resync_seconds),
                "DPO_PROGRESS_SECONDS": "1",
                "DPO_LOG_FORMAT": "plain",
                "DPO_ALLOW": EVERYTHING,
            }
            | self.settings
        )
        with self.log.open("ab") as log:
            self._process = tied.popen([sys.executable, "-m", "dpo_operator"], env=environment, stdout=log, stderr=log)
        wait_until("healthy operator", self._healthy, seconds=90)

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send a signal and wait for nothing."""
        assert self._process is not None
        self._process.send_signal(number)

    def exit_status(self, seconds: float = 30) -> int:
        """Wait until it ends by itself. Returns its exit status."""
        process, self._process = self._process, None
        assert process is not None
        return process.wait(timeout=seconds)

    @property
    def healthy(self) -> bool:
        """Whether the liveness probe passes now."""
        return self._process is not None and self._process.poll() is None and self._healthy()

    def _healthy(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-4000:]
        try:
            return b"alive" in self._get(self.health_port, "healthz")
        except OSError:
            return False

    def _get(self, port: int, path: str, seconds: float = 5) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=seconds) as answer:
            return bytes(answer.read())

    def metrics(self) -> str:
        """What Prometheus would scrape."""
        # The series of 10,000 jobs take seconds to render on a busy machine.
        return self._get(self.metrics_port, "metrics", 30).decode()

    def kill(self) -> None:
        """SIGKILL: it has no time to do anything."""
        self._stop(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, as Kubernetes does. Returns the exit status."""
        return self._stop(signal.SIGTERM)

    def _stop(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(timeout=30)


@contextmanager
def running(operator: OperatorProcess) -> Iterator[OperatorProcess]:
    """The operator, stopped afterwards whatever happened."""
    try:
        operator.start()
        yield operator
    finally:
        operator.stop()
