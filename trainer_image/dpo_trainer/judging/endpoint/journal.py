"""What calls to an endpoint cost and said: a file that is only appended to, and the cache of verdicts that it makes.

A call is written down before it is sent, and its answer before it is used, both flushed to disk. So after a crash no call is forgotten in
the budget, and no answer that arrived is asked for again; a call that was on its way is asked again.

Lines of JSON: {"call", "key", "estimate"}, {"answer", "key", "verdict", "text", "tokens"} and {"lost", "tokens"}, by the number of the
call.
"""

import asyncio
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_trainer.judging.contract import Spent
from dpo_trainer.judging.endpoint.verdicts import Verdict
from dpo_trainer.runtime.files import sync_folder

log = logging.getLogger(__name__)

# Characters of a verdict's text that are kept for people.
TEXT = 500
_LONGEST_LINE = 1 << 20


@dataclass(frozen=True)
class Answer:
    """A verdict that was paid for; None when the text is none. text: of a verdict that could not be read, shortened."""

    verdict: Verdict | None
    text: str = ""


class Journal:
    """The journal of one job, opened for appending. Raises OSError."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        # A file whose folder was not flushed is gone after a power cut, and with it what was paid for.
        sync_folder(path.parent)
        sync_folder(path.parent.parent)
        self._answers: dict[str, Answer] = {}
        self._calls = self._tokens = 0
        self._next = 1
        self._read(path)
        self._lock = asyncio.Lock()
        self._pending: list[bytes] = []
        self._written = self._flushed = 0
        self._broken: OSError | None = None

    @property
    def spent(self) -> Spent:
        """Calls, and the tokens of those that have ended; a call that a kill cut off counts by the estimate of its request."""
        return Spent(self._calls, self._tokens)

    def find(self, key: str) -> Answer | None:
        """The verdict of an earlier call."""
        return self._answers.get(key)

    async def call(self, key: str, estimate: int) -> int:
        """Write down that a call is about to be sent; returns its number."""
        number, self._next = self._next, self._next + 1
        self._calls += 1
        await self._append({"call": number, "key": key, "estimate": estimate})
        return number

    async def answer(self, number: int, key: str, answer: Answer, text: str, tokens: int) -> None:
        """Write down the answer of a call."""
        shown = text[:TEXT]
        await self._append({"answer": number, "key": key, "verdict": answer.verdict, "text": shown, "tokens": tokens})
        self._tokens += tokens
        self._answers[key] = answer

    async def lost(self, number: int, tokens: int) -> None:
        """Write down that a call brought no verdict. tokens: that it is thought to have cost."""
        await self._append({"lost": number, "tokens": tokens})
        self._tokens += tokens

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    async def _append(self, line: dict[str, Any]) -> None:
        """Append a line and wait until it is on disk; lines that come meanwhile are flushed together."""
        self._pending.append(json.dumps(line).encode() + b"\n")
        self._written += 1
        mine = self._written
        async with self._lock:
            if self._broken is not None:
                raise self._broken
            if self._flushed < mine:
                lines, self._pending, upto = self._pending, [], self._written
                try:
                    await asyncio.to_thread(self._flush, b"".join(lines))
                except OSError as error:
                    self._broken = error
                    raise
                self._flushed = upto

    def _flush(self, content: bytes) -> None:
        while content:
            content = content[os.write(self._file, content) :]
        os.fsync(self._file)

    def _read(self, path: Path) -> None:
        """Read what is there. A last line that a crash cut off is removed; other lines that can't be read are counted and left alone."""
        damaged, end = 0, 0
        unended: dict[int, int] = {}
        with os.fdopen(os.dup(self._file), "rb") as file:
            while line := file.readline(_LONGEST_LINE):
                if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
                    os.truncate(self._file, end)
                    break
                end += len(line)
                damaged += not self._take(line, unended)
        self._tokens += sum(unended.values())
        if damaged:
            log.warning("%s: %d lines can't be read; verdicts in them are asked for again", path, damaged)

    def _take(self, text: bytes, unended: dict[int, int]) -> bool:
        """Read one line. unended: estimated tokens of each call that has no end so far."""
        try:
            line = json.loads(text)
            if "call" in line:
                unended[int(line["call"])] = int(line["estimate"])
                self._calls += 1
                self._next = max(self._next, int(line["call"]) + 1)
                return True
            tokens, number = int(line["tokens"]), int(line["answer"] if "answer" in line else line["lost"])
            if "answer" in line:
                verdict = line["verdict"]
                if not (verdict in (None, "A", "B", "tie") or type(verdict) in (int, float)):
                    return False
                self._answers[str(line["key"])] = Answer(verdict, str(line["text"]) if verdict is None else "")
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        unended.pop(number, None)
        self._tokens += tokens
        return True
