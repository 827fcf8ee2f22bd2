"""A kubectl for tests of what is asked of it and what is made of its answers; the tier apiserver has the real one."""

import json
import shlex
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

_SCRIPT = """#!{python}
import json, sys
words = " ".join(w for w in sys.argv[1:] if not w.startswith(("--namespace=", "--context=", "--kubeconfig=", "--request-timeout=", "--output=")))
open({calls!r}, "a").write(json.dumps(sys.argv[1:]) + "\\n")
answers = json.load(open({answers!r}))
for start, (code, out, err) in answers.items():
    if words.startswith(start):
        sys.stdout.write(out)
        sys.stderr.write(err)
        raise SystemExit(code)
sys.stderr.write("no answer for " + words)
raise SystemExit(1)
"""


class FakeKubectl:
    """A program `kubectl` on the PATH. An answer belongs to all commands that begin with its words."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._answers, self._calls = folder / "answers.json", folder / "calls"
        self._answers.write_text("{}")
        tools = folder / "tools"
        tools.mkdir()
        script = tools / "kubectl"
        script.write_text(_SCRIPT.format(python=sys.executable, calls=str(self._calls), answers=str(self._answers)))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")

    def answer(self, start: str, document: Any, warnings: str = "") -> None:
        """What a command prints: text, or an object as JSON. warnings: on its standard error."""
        self._set(start, (0, document if isinstance(document, str) else json.dumps(document), warnings))

    def refuse(self, start: str, words: str) -> None:
        """A command fails with these words."""
        self._set(start, (1, "", words))

    def calls(self) -> list[str]:
        """The commands so far."""
        return [shlex.join(json.loads(line)) for line in self._calls.read_text().splitlines()]

    def _set(self, start: str, answer: tuple[int, str, str]) -> None:
        answers = json.loads(self._answers.read_text())
        # The newest first.
        self._answers.write_text(json.dumps({start: answer} | {k: v for k, v in answers.items() if k != start}))
