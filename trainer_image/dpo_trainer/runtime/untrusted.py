"""Work on input that somebody else wrote, such as a chat template: bounded in time and memory, and named when it fails.

A template or a regular expression can loop for years inside C code that holds Python's lock, so no thread of the same process could
end it. The process writes on a page that it shares with its parent what it works on and until when (Board); the parent
(launch/guard.py) ends it when the time is over. Without a parent that watches, as in a test, time and memory have no bound.
"""

import mmap
import resource
import struct
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime.errors import TrainerError, first_line, invalid_configuration

# Seconds for one piece of work, as long as it takes. All are finished in a small part of it, also on a busy machine.
LONGEST: Final = 600.0
LONGEST_CHAT: Final = 60.0
# Bytes that rendering a chat may take on top of what the process has. A chat has a million characters.
CHAT_MEMORY: Final = 2**30

_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_HEAD = struct.Struct("dii")  # deadline, exit code, bytes of text
_PAGE = 4096


class Late(NamedTuple):
    """What a process works on. deadline: of time.monotonic(), 0 when it works on nothing of others. code: how the job ends then."""

    deadline: float
    code: ExitCode
    what: str


_NOTHING = Late(0.0, ExitCode.OK, "")


class Board:
    """A page that a process and its child share: what the child works on. Make it before the fork."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _PAGE)

    def write(self, entry: Late) -> None:
        """Replace the entry."""
        text = entry.what.encode(errors="backslashreplace")[: _PAGE - _HEAD.size]
        self._page[_HEAD.size : _HEAD.size + len(text)] = text
        _HEAD.pack_into(self._page, 0, entry.deadline, entry.code, len(text))

    def read(self) -> Late:
        """The entry. It is whole when the other process no longer changes it."""
        deadline, code, size = _HEAD.unpack_from(self._page)
        return Late(deadline, ExitCode(code), self._page[_HEAD.size : _HEAD.size + size].decode(errors="replace"))


class _State:
    board: Board | None = None
    entry: Late = _NOTHING


_state = _State()


def watched_by(board: Board) -> None:
    """Write what this process works on to the page, and let limit_memory work. For the child."""
    _state.board = board


class Untrusted:
    """A context for a piece of work on others' input, in the main thread.

    what: the work with its input, for the message, such as "rendering the chat template for row 7". seconds: bound on its time.
    code: how the job ends when the time is over. memory: bytes that it may take on top of what the process has; None for what
        limit_memory left.
    Raises TrainerError INVALID_CONFIGURATION in the place of MemoryError and of a panic in a library that is written in Rust.
    """

    __slots__ = ("_before", "_entry", "_limits", "_memory")

    def __init__(
        self,
        what: str,
        seconds: float = LONGEST,
        code: ExitCode = ExitCode.INVALID_CONFIGURATION,
        *,
        memory: int | None = None,
    ) -> None:
        self._memory = memory
        self._limits: tuple[int, int] | None = None
        self._entry = Late(time.monotonic() + seconds, code, what)

    def __enter__(self) -> None:
        self._before = _state.entry
        self._set(self._entry)
        if self._memory is not None and _state.board is not None:
            self._limits = resource.getrlimit(resource.RLIMIT_DATA)
            _limit_data(_reserved() + self._memory)

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._set(self._before)
        if self._limits is not None:
            resource.setrlimit(resource.RLIMIT_DATA, self._limits)
        if isinstance(error, MemoryError):
            raise out_of_memory(self._entry.what) from error
        if error is not None and is_panic(error):
            raise invalid_configuration(
                f"{self._entry.what} failed inside the library: {first_line(error)}; correct or leave out what it reads"
            ) from error

    @staticmethod
    def _set(entry: Late) -> None:
        _state.entry = entry
        if _state.board is not None:
            _state.board.write(entry)


def out_of_memory(what: str) -> TrainerError:
    """The error for work that needs more memory than there is."""
    return invalid_configuration(
        f"{what} needed more memory than this process may have; correct or leave out what it reads, or raise "
        "pod.prepareResources.limits.memory"
    )


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic in Rust code, as pyo3 raises it: a BaseException, of a class that can't be imported."""
    return type(error).__name__ == "PanicException"


def limit_memory() -> None:
    """Let allocations fail before the container, or the machine, is out of memory. Nothing without a parent that watches.

    The limit is on private memory that is reserved (RLIMIT_DATA), a part of which is never touched: that part is counted on top. Call
    it when the libraries are loaded.
    """
    if _state.board is None:
        return
    status = _fields("/proc/self/status")
    available = _available()
    if available is not None and "VmData" in status and "RssAnon" in status:
        _limit_data(status["VmData"] + max(0, available - status["RssAnon"]))


def _limit_data(most: int) -> None:
    """Lower the limit on private memory to this many bytes, never raise it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard))


def _reserved() -> int:
    """Bytes of private memory that this process has reserved."""
    with open("/proc/self/statm", "rb", buffering=0) as file:
        return int(file.read().split()[5]) * resource.getpagesize()


def _available() -> int | None:
    """Bytes that this process may have at most: the container's limit, or what the machine has."""
    limits = []
    for path in _MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # not this version of control groups, or "max"
            limits.append(int(Path(path).read_text(encoding="ascii")))
    machine = _fields("/proc/meminfo")
    if "MemAvailable" in machine:
        limits.append(machine["MemAvailable"])
    # Some memory of the container is not this process's own: its parent, and files in memory.
    return int(min(limits) * 0.95) if limits else None


def _fields(path: str) -> dict[str, int]:
    """Sizes in a file of /proc, bytes by name."""
    found = {}
    with suppress(OSError):
        for line in Path(path).read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if value.endswith(" kB"):
                found[name] = int(value.split()[0]) << 10
    return found
