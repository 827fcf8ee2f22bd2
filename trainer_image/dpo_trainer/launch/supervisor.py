"""The processes of one pod: started together and ended together. The pod reports the first failure."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

from dpo_operator.api.exitcodes import ExitCode, echo
from dpo_trainer.launch.stacks import Stacks
from dpo_trainer.runtime.parent import become_reaper, end_with_parent


@dataclass(frozen=True)
class GracePeriods:
    """How long the launcher waits, in seconds.

    notice: time for siblings of a failed rank to exit with PeerLost, before SIGTERM. end: from SIGTERM to SIGKILL.
    dump: from a stop signal to the dump of the stacks of ranks that still run. Kubernetes' grace period decides how long a save may
        take; the dump only shows where a rank hangs, or what a long save does. With collect it fits the 10 s that the
        operator gives to the pods of a failed attempt.
    collect: from the request of a dump to its collection.
    together: after the exit of a rank that was stopped (143), time for the others to do the same, before SIGTERM.
    orphaned: from a stop signal to SIGTERM when the launcher's own parent has exited, because no other process could end hung ranks.
    """

    notice: float = 5.0
    end: float = 10.0
    dump: float = 5.0
    collect: float = 1.0
    together: float = 120.0
    orphaned: float = 120.0


@dataclass
class Supervisor:
    """Starts the ranks of this pod and waits until all have exited.

    command: argv of every rank. environments: one for each local rank. say: prints a line.
    stacks: collects the stacks of hung ranks.
    codes: exit code by local rank, negative for a signal. failed: local rank of the first failure.
    """

    command: Sequence[str]
    environments: Sequence[Mapping[str, str]]
    say: Callable[[str], None]
    stacks: Stacks
    grace: GracePeriods = GracePeriods()
    codes: dict[int, int] = field(default_factory=dict)
    failed: int | None = None
    _parent: int = field(default_factory=os.getppid)
    _running: dict[int, int] = field(default_factory=dict)
    _ending: bool = False
    _killing: bool = False
    _stop_sent: bool = False
    _timers: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def run(self) -> None:
        """Start the ranks, wait for them, and end the others after a failure. Afterwards `codes` has every local rank."""
        become_reaper()
        handlers = {
            signal.SIGTERM: self._forward,
            signal.SIGINT: self._forward,
            signal.SIGUSR1: self._forward_dump,
            signal.SIGALRM: self._alarm,
        }
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            self._start()
            while self._running:
                self._reap()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in previous.items():
                signal.signal(number, handler)
            # Stacks of ranks that exited between the request and its collection.
            self.stacks.collect(range(len(self.environments)))
            self.stacks.finish()

    @property
    def primary_failure(self) -> int | None:
        """Local rank whose exit code the pod reports: the first failure, else a rank that was stopped, else None."""
        if self.failed is not None:
            return self.failed
        return next((rank for rank, code in sorted(self.codes.items()) if code != 0), None)

    def _start(self) -> None:
        # A signal between two starts would miss the rank that does not exist yet.
        held = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM}
        signal.pthread_sigmask(signal.SIG_BLOCK, held)
        try:
            for local_rank, environment in enumerate(self.environments):
                process = subprocess.Popen(
                    self.command,
                    env=dict(environment),
                    # A session of its own: Ctrl-C reaches ranks once, through the launcher.
                    start_new_session=True,
                    preexec_fn=_child_setup(held),
                )
                process.returncode = 0  # reaped here, not by subprocess
                self._running[process.pid] = local_rank
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, held)

    def _reap(self) -> None:
        """Wait for the next child that exits. As PID 1 it may be an adopted orphan, which is no rank."""
        try:
            pid, status = os.wait()
        except ChildProcessError:
            self._running.clear()
            return
        local_rank = self._running.pop(pid, None)
        if local_rank is None:
            return
        code = os.waitstatus_to_exitcode(status)
        self.codes[local_rank] = code
        self._record_exit(local_rank, code)

    def _record_exit(self, local_rank: int, code: int) -> None:
        if code == 0:
            return
        if code == ExitCode.SIGTERM:
            if not self._stop_sent and not self._ending:
                self._after(self.grace.together, self._end_others)
            return
        # Ignore exits that the launcher caused.
        if (self._ending and code == -signal.SIGTERM) or (self._killing and code == -signal.SIGKILL):
            return
        if self.failed is None:
            self.failed = local_rank
            self._after(self.grace.notice, self._end_others)
        elif echo(exit_code(code)) < echo(exit_code(self.codes[self.failed])):
            # A rank that lost its peer, or that NCCL aborted, may be reaped before the peer that failed.
            self.failed = local_rank

    def _end_others(self) -> None:
        self._ending = True
        self._signal(signal.SIGTERM)
        self._after(self.grace.end, self._kill_others)

    def _kill_others(self) -> None:
        if self._running:
            self.say(f"launch: local ranks {sorted(self._running.values())} do not end; killing them")
        self._killing = True
        self._signal(signal.SIGKILL)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self._stop_sent = True
        self._signal(signal.Signals(number))
        self._after(self.grace.dump, self._dump_late)
        if os.getppid() != self._parent:
            self._after(self.grace.orphaned, self._end_others)

    def _forward_dump(self, _number: int, _frame: FrameType | None) -> None:
        self._dump("SIGUSR1")

    def _dump_late(self) -> None:
        self._dump(f"not ended {self.grace.dump:.0f} s after the signal")

    def _dump(self, why: str) -> None:
        requested = dict(self._running)
        if requested:
            self.stacks.request(requested, why)
            self._after(self.grace.collect, lambda: self._collect(requested))

    def _collect(self, requested: Mapping[int, int]) -> None:
        self.stacks.collect(sorted(requested.values()), missed=self._running.values())

    def _signal(self, number: signal.Signals) -> None:
        for pid in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                # SIGKILL goes to the rank's whole session, so that no data loader outlives it.
                (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self._timers.append((time.monotonic() + seconds, action))
        self._arm()

    def _arm(self) -> None:
        if self._timers:
            wait = min(at for at, _ in self._timers) - time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, max(0.001, wait))

    def _alarm(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        due = [action for at, action in self._timers if at <= now]
        self._timers = [(at, action) for at, action in self._timers if at > now]
        for action in due:
            action()
        self._arm()


def exit_code(code: int) -> int:
    """Exit code as a shell reports it. code: negative for a signal n, which becomes 128+n."""
    return 128 - code if code < 0 else code


def _child_setup(held: set[signal.Signals]) -> Callable[[], None]:
    parent = os.getpid()

    def setup() -> None:
        # Without its launcher no process would end the rank; SIGTERM makes it save and exit.
        end_with_parent(parent, signal.SIGTERM)
        # SIGUSR1 must not end a rank that has not set up its stack dumps yet; exec keeps ignored signals ignored.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)

    return setup
