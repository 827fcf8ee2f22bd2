"""diagnosis.json: first steps and words stay, what ended is remembered, and a restart continues at its step."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.diagnosis import Code, Finding
from dpo_trainer.diagnosis.history import Diagnosis
from dpo_trainer.runtime.workdir import WorkDir

pytestmark = pytest.mark.unit


def said(code: str, step: int, severity: Any = "Warning", cause: str = "") -> Finding:
    return Finding(code=code, severity=severity, step=step, cause=cause or f"{code} at {step}.", suggestion="Try less.")


def codes(found: Diagnosis) -> list[tuple[str, int]]:
    return [(finding.code, finding.step) for finding in found.findings]


def test_a_finding_that_goes_on_keeps_its_first_step_and_words():
    first, new = Diagnosis().at(10, [said(Code.OVERFITTING, 10)])
    assert [finding.step for finding in new] == [10]
    second, new = first.at(20, [said(Code.OVERFITTING, 20)])
    assert (new, codes(second), second.findings[0].cause) == ([], [("Overfitting", 10)], "Overfitting at 10.")


def test_a_finding_that_becomes_worse_is_stated_again_with_its_first_step():
    first, _ = Diagnosis().at(10, [said(Code.VERBOSITY, 10)])
    second, new = first.at(20, [said(Code.VERBOSITY, 20, "Unhealthy")])
    assert [(f.severity, f.step, f.cause) for f in new] == [("Unhealthy", 10, "Verbosity at 20.")]
    assert len(second.history) == 1
    third, new = second.at(30, [said(Code.VERBOSITY, 30, "Info")])
    assert (new, third.findings[0].severity) == ([], "Info")


def test_what_no_longer_holds_stays_in_the_history():
    first, _ = Diagnosis().at(10, [said(Code.FLAT_LOSS, 10)])
    second, _ = first.at(20, [])
    assert (second.findings, second.history[0].ended) == ((), 20)
    third, new = second.at(30, [said(Code.FLAT_LOSS, 30)])
    assert ([f.step for f in new], len(third.history), codes(third)) == ([30], 2, [("FlatLoss", 30)])


def test_a_restart_knows_what_was_known_at_its_step():
    found = Diagnosis()
    for step, holding in ((10, [Code.FLAT_LOSS]), (20, []), (30, [Code.OVERFITTING])):
        found, _ = found.at(step, [said(code, step) for code in holding])
    assert codes(found.cut(15)) == [("FlatLoss", 10)]
    assert codes(found.cut(20)) == []
    assert [one.finding.code for one in found.cut(20).history] == ["FlatLoss"]
    assert (codes(found.cut(40)), found.cut(40).step) == ([("Overfitting", 30)], 30)


def test_warnings_of_both_splits_stand_side_by_side():
    found, new = Diagnosis().at(
        0, [said("LengthBias", 0, cause="train: longer"), said("LengthBias", 0, cause="eval: longer")]
    )
    assert (len(new), len(found.warnings)) == (2, 2)


def test_the_file_has_the_sentences_and_reads_back(tmp_path: Path):
    work = WorkDir(tmp_path)
    assert Diagnosis.read(work) == Diagnosis()
    found, _ = Diagnosis().at(10, [said(Code.FLAT_LOSS, 10)])
    found, _ = found.at(20, [said(Code.GIBBERISH, 20, "Unhealthy")])
    found.write(work)
    document = json.loads(work.diagnosis.read_text())
    assert document["findings"][0]["sentence"] == "Gibberish at 20. Try less."
    assert [(one["finding"]["code"], one["ended"]) for one in document["history"]] == [
        ("FlatLoss", 20),
        ("Gibberish", None),
    ]
    assert Diagnosis.read(work) == found


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2, "findings": []}', '{"version": 1, "step": "x"}'])
def test_a_file_of_another_kind_counts_as_none(tmp_path: Path, text: str):
    work = WorkDir(tmp_path)
    work.diagnosis.write_text(text)
    assert Diagnosis.read(work) == Diagnosis()


def test_a_history_of_endless_changes_stays_bounded():
    found = Diagnosis()
    for step in range(1, 1200):
        found, _ = found.at(step, [said(Code.FLAT_LOSS, step)] if step % 2 else [])
    assert len(found.history) < 300
