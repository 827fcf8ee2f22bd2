"""The journal after crashes, and what it says was spent."""

import asyncio
from pathlib import Path

import pytest

from dpo_trainer.judging import Spent
from dpo_trainer.judging.endpoint.journal import Answer, Journal

pytestmark = pytest.mark.unit


def opened(path: Path) -> Journal:
    return Journal(path / "judge" / "journal.jsonl")


def filled(path: Path) -> bytes:
    """The file of three calls: answered, lost, and cut off by a kill."""

    async def calls(journal: Journal) -> None:
        await journal.answer(await journal.call("one", 10), "one", Answer("A"), '{"winner": "A"}', 25)
        await journal.lost(await journal.call("two", 20), 0)
        await journal.call("three", 40)

    journal = opened(path)
    asyncio.run(calls(journal))
    journal.close()
    return (path / "judge" / "journal.jsonl").read_bytes()


def test_a_call_that_a_kill_cut_off_counts_by_its_estimate(tmp_path: Path) -> None:
    filled(tmp_path)
    journal = opened(tmp_path)
    assert journal.spent == Spent(calls=3, tokens=65)
    assert journal.find("one") == Answer("A")
    assert journal.find("two") is None
    assert journal.find("three") is None


def test_at_every_length_the_file_is_readable_and_goes_on(tmp_path: Path) -> None:
    """A crash leaves any beginning of the file."""
    whole = filled(tmp_path)
    path = tmp_path / "judge" / "journal.jsonl"

    async def go_on(journal: Journal) -> None:
        number = await journal.call("four", 1)
        await journal.answer(number, "four", Answer(7.0), "7", 2)

    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        lines = whole[:size].count(b"\n")
        journal = opened(tmp_path)
        assert journal.spent.calls == (lines >= 1) + (lines >= 3) + (lines >= 5)
        if size % 40 == 0:
            asyncio.run(go_on(journal))
        journal.close()
        if size % 40 == 0:
            again = opened(tmp_path)
            assert again.find("four") == Answer(7.0)
            assert again.find("one") == (Answer("A") if lines >= 2 else None)
            again.close()


def test_lines_that_say_nothing_are_counted_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path)
    path = tmp_path / "judge" / "journal.jsonl"
    hostile = (
        b'{"answer": 1, "key": "x", "verdict": {"A": 1}, "text": "", "tokens": 1}\nnonsense\n[]\n{"answer": "no"}\n'
        + b"{" * 5000
        + b"\n"
    )
    path.write_bytes(hostile + path.read_bytes())
    journal = opened(tmp_path)
    assert journal.spent == Spent(calls=3, tokens=65)
    assert journal.find("x") is None
    assert "5 lines can't be read" in caplog.text
    assert path.read_bytes().startswith(hostile)


def test_a_link_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "journal.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        opened(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_volume_is_an_error_for_all_that_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(tmp_path)

    def full(_content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "_flush", full)

    async def calls() -> list[object]:
        return await asyncio.gather(*(journal.call(str(number), 1) for number in range(5)), return_exceptions=True)

    assert [type(found) for found in asyncio.run(calls())] == [OSError] * 5
