"""Prepare ends with last words when others' input loops for ever, takes all memory or crashes a library."""

import errno
import faulthandler
import json
import mmap
import os
import signal
import subprocess
import sys
import time

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import Termination
from dpo_trainer.launch import guard
from dpo_trainer.runtime.untrusted import Untrusted, limit_memory
from tests import tied
from tests.unit.trainer.place import Place
from tests.unit.trainer.tiny import tiny_model, write_jsonl

pytestmark = pytest.mark.unit

CHATS = [{"prompt": [{"role": "user", "content": f"Hi {i}"}], "chosen": "yes", "rejected": "no"} for i in range(3)]


def guarded(phase, monkeypatch) -> tuple[int, list[str]]:
    """Run a function as the phase in a child; its exit code and the last words that the parent left."""
    monkeypatch.setattr(guard, "POLL_SECONDS", 0.05)
    said = []

    def in_child() -> int:
        faulthandler.disable()
        try:
            os._exit(phase() or 0)
        finally:
            os._exit(99)  # an error must not go on in the child with pytest's own work

    code = guard.run(in_child, lambda code, message: said.append(message) or code)
    return code, said


def test_work_that_holds_the_interpreter_for_ever_is_ended(monkeypatch):
    def phase() -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        with Untrusted("rendering the chat template for row 7", 0.2):
            int.__pow__(10, 10**9)  # in C, for hours

    code, said = guarded(phase, monkeypatch)
    assert code == ExitCode.INVALID_CONFIGURATION
    assert "rendering the chat template for row 7 took too long" in said[0]


def test_work_between_bounds_and_after_them_may_take_any_time(monkeypatch):
    def phase() -> int:
        with Untrusted("outer", 100), Untrusted("inner", 0.05):
            pass
        time.sleep(0.3)
        return 5

    assert guarded(phase, monkeypatch) == (5, [])


def test_memory_is_limited_below_what_the_machine_has(monkeypatch):
    def phase() -> int:
        limit_memory()
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        pieces = []
        try:
            with Untrusted("rendering"):
                # Never touched, so the machine has room for all of it.
                pieces += [mmap.mmap(-1, memory // 4, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(5)]
        except OSError as error:
            return error.errno
        return 0

    assert guarded(phase, monkeypatch) == (errno.ENOMEM, [])


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [
        (signal.SIGABRT, ExitCode.INVALID_CONFIGURATION, "tokenizing rows 0 to 9 ended the process by SIGABRT"),
        (signal.SIGKILL, ExitCode.SIGKILL, "Killed while tokenizing rows 0 to 9, probably out of memory"),
    ],
)
def test_a_crash_of_a_library_has_last_words(monkeypatch, number, code, text):
    def phase() -> None:
        with Untrusted("tokenizing rows 0 to 9"):
            os.kill(os.getpid(), number)

    found, said = guarded(phase, monkeypatch)
    assert found == code
    assert text in said[0]


def test_a_crash_elsewhere_is_no_fault_of_the_inputs(monkeypatch):
    code, said = guarded(lambda: os.kill(os.getpid(), signal.SIGSEGV), monkeypatch)
    assert (code, said) == (128 + signal.SIGSEGV, ["The process was ended by SIGSEGV."])


def prepared(place: Place, job: dict) -> tuple[int, Termination]:
    """Run prepare as a container does."""
    (place.root / "job.json").write_text(json.dumps(job))
    termination = place.root / "termination.json"
    done = tied.run(
        [sys.executable, "-m", "dpo_trainer", "prepare"],
        env={
            **os.environ, "DPO_JOB_FILE": str(place.root / "job.json"), "DPO_WORK_DIR": str(place.work.root),
            "DPO_METRICS_PORT": "0", "DPO_TERMINATION_LOG": str(termination),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    return done.returncode, Termination.from_text(termination.read_text())


def chats(place: Place, template: str) -> dict:
    tiny_model(place.model, template=template)
    write_jsonl(place.train, CHATS)
    return json.loads(place.job().model_dump_json(by_alias=True, exclude_defaults=True))


def test_a_template_that_takes_all_memory_is_named(tmp_path):
    place = Place(tmp_path)
    code, termination = prepared(place, chats(place, "{{ 'a' * 3000000000 }}"))
    assert (code, termination.reason) == (78, "InvalidConfiguration")
    assert "rendering the chat template for a question needed more memory" in termination.message


def test_a_pattern_that_backtracks_is_named_with_its_rows(tmp_path):
    place = Place(tmp_path)
    path = place.model / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    slow = pre_tokenizers.Split(Regex(r"(?:a|aa|aaa)+$"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([slow, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.save(str(path))
    write_jsonl(place.train, [{"prompt": "Q", "chosen": "a" * 500 + "b", "rejected": "no"}])
    message = place.refused(ExitCode.INVALID_CONFIGURATION)
    assert "tokenizing row 0 failed inside the library" in message
