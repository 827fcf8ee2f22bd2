"""Wait until the name of rank 0's pod can be resolved: a headless Service's records lag behind its pods."""

import os
import socket
import time
from collections.abc import Callable

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime.errors import TrainerError

ENV_TIMEOUT = "DPO_RENDEZVOUS_TIMEOUT"
DEFAULT_TIMEOUT = 300.0
_SECONDS_BETWEEN_TRIES = 1.0
_LOG_INTERVAL_SECONDS = 15.0


def timeout_from_environment() -> float:
    """Seconds to wait: DPO_RENDEZVOUS_TIMEOUT, default 300."""
    try:
        return max(0.0, float(os.environ[ENV_TIMEOUT]))
    except (KeyError, ValueError):
        return DEFAULT_TIMEOUT


def wait_for_name(
    host: str,
    say: Callable[[str], None],
    *,
    timeout: float,
    resolve: Callable[[str], object] = lambda host: socket.getaddrinfo(host, None),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Return as soon as host resolves.

    say: called at the start of the wait and every 15 s. timeout: seconds.
    Raises TrainerError PEER_LOST after the timeout.
    """
    start = clock()
    last_log: float | None = None
    while True:
        try:
            resolve(host)
            return
        except OSError as error:
            reason = error.strerror or str(error)
        now = clock()
        if now - start >= timeout:
            raise TrainerError(
                ExitCode.PEER_LOST,
                f"The name of rank 0's pod, {host}, did not resolve within {timeout:.0f} s ({reason}). Is that pod running, "
                "does the headless Service exist, and may this pod reach the cluster's DNS?",
            )
        if last_log is None or now - last_log >= _LOG_INTERVAL_SECONDS:
            say(f"waiting for the name of rank 0, {host}: {reason} ({now - start:.0f} of {timeout:.0f} s)")
            last_log = now
        sleep(_SECONDS_BETWEEN_TRIES)
