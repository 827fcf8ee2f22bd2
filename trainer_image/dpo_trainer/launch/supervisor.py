"""The processes of one pod: started together, ended together, and the first failure is the one that counts."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

from dpo_operator.api.exitcodes import ExitCode, info
from dpo_trainer.launch.stacks import Stacks

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Patience:
    """How long the launcher waits, in seconds.

    notice: a sibling of a failed rank may say that it lost its peer, before SIGTERM. end: after that, before SIGKILL.
    dump: after a stop signal, before the stacks of ranks that are still there are dumped. How long a save may take is
        Kubernetes' grace period to decide; the dump only shows where a rank hangs, or what a long save does. With collect it
        fits the 10 s that the operator leaves to the pods of an attempt that failed.
    collect: for the dump.
    together: a rank that stopped in order (143) does so with all others; one that has not by then is ended.
    orphaned: after a stop signal, when the launcher's own parent has ended: nobody is left who could end ranks that hang.
    """

    notice: float = 5.0
    end: float = 10.0
    dump: float = 5.0
    collect: float = 1.0
    together: float = 120.0
    orphaned: float = 120.0


@dataclass
class Gang:
    """The ranks of this pod, from their start until all have ended.

    command: argv of every rank. environments: one for each local rank. say: prints a line.
    stacks: takes the stacks of ranks that hang.
    """

    command: Sequence[str]
    environments: Sequence[Mapping[str, str]]
    say: Callable[[str], None]
    stacks: Stacks
    patience: Patience = Patience()
    codes: dict[int, int] = field(default_factory=dict)
    failed: int | None = None
    _parent: int = field(default_factory=os.getppid)
    _running: dict[int, int] = field(default_factory=dict)
    _ending: bool = False
    _killing: bool = False
    _stop_sent: bool = False
    _timers: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def run(self) -> None:
        """Start, wait, and end what has to be ended. Afterwards `codes` has an exit code for every local rank."""
        _become_reaper()
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
            # Of ranks that ended between the request and the look.
            self.stacks.collect(range(len(self.environments)))
            self.stacks.finish()

    @property
    def culprit(self) -> int | None:
        """Local rank whose end is the pod's: the first failure, else a rank that stopped, else None."""
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
        """Take the next child that ended; as process 1 of a container that may be anybody's orphan."""
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
        self._judge(local_rank, code)

    def _judge(self, local_rank: int, code: int) -> None:
        if code == 0:
            return
        if code == ExitCode.SIGTERM:
            if not self._stop_sent and not self._ending:
                self._after(self.patience.together, self._end_others)
            return
        # Ends that the launcher itself brought about are no failures of their own.
        ours = (self._ending and code == -signal.SIGTERM) or (self._killing and code == -signal.SIGKILL)
        if ours:
            return
        if self.failed is None:
            self.failed = local_rank
            self._after(self.patience.notice, self._end_others)
        elif _is_secondary(self.codes[self.failed]) and not _is_secondary(code):
            # Who lost a peer can be reaped before the peer that was lost.
            self.failed = local_rank

    def _end_others(self) -> None:
        self._ending = True
        self._signal(signal.SIGTERM)
        self._after(self.patience.end, self._kill_others)

    def _kill_others(self) -> None:
        if self._running:
            self.say(f"launch: local ranks {sorted(self._running.values())} do not end; killing them")
        self._killing = True
        self._signal(signal.SIGKILL)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self._stop_sent = True
        self._signal(signal.Signals(number))
        self._after(self.patience.dump, self._dump_late)
        if os.getppid() != self._parent:
            self._after(self.patience.orphaned, self._end_others)

    def _forward_dump(self, _number: int, _frame: FrameType | None) -> None:
        self._dump("SIGUSR1")

    def _dump_late(self) -> None:
        self._dump(f"not ended {self.patience.dump:.0f} s after the signal")

    def _dump(self, why: str) -> None:
        asked = dict(self._running)
        if asked:
            self.stacks.request(asked, why)
            self._after(self.patience.collect, lambda: self._collect(asked))

    def _collect(self, asked: Mapping[int, int]) -> None:
        self.stacks.collect(sorted(asked.values()), missed=self._running.values())

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
    """A wait status as an exit code: what died of signal n is 128+n, as for a shell."""
    return 128 - code if code < 0 else code


def _is_secondary(code: int) -> bool:
    return info(exit_code(code)).failure_class == "secondary"


def _become_reaper() -> None:
    """Orphans of a rank come to this process, as they would to process 1, and are reaped instead of staying zombies."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _child_setup(held: set[signal.Signals]) -> Callable[[], None]:
    parent = os.getpid()

    def setup() -> None:
        # Without its launcher a rank has no one to end it; SIGTERM makes it save and go.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(ExitCode.SIGTERM)
        # Until a rank has set up its stack dumps, a request for one must not end it; exec keeps what is ignored.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)

    return setup


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
