from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dpo_operator.api.reports import (
    MAX_TERMINATION_BYTES,
    CheckpointRef,
    DatasetReport,
    Progress,
    RoundReport,
    Termination,
)
from dpo_operator.api.statusparts.rounds import RoundStatus
from dpo_operator.api.sweep.report import LegReport

pytestmark = pytest.mark.unit

A_CHECKPOINT = CheckpointRef(step=50, path="checkpoints/step-00000050", digest="a" * 64, attempt=1, time=1.0)


def words(message: str) -> Termination:
    return Termination(
        phase="train",
        attempt=2,
        outcome="Failed",
        exit_code=70,
        reason="InternalError",
        message=message,
        progress=Progress(phase="train", attempt=2, step=50, checkpoint=A_CHECKPOINT),
        dataset=DatasetReport(train_pairs=10, eval_pairs=2, dropped={"equal_answers": 3}),
    )


@given(st.text(max_size=9000))
def test_a_termination_message_fits_and_keeps_its_facts(message: str) -> None:
    text = words(message).to_text()
    assert len(text.encode()) <= MAX_TERMINATION_BYTES
    back = Termination.from_text(text)
    assert back is not None
    assert (back.exit_code, back.reason, back.progress, back.dataset) == (
        70,
        "InternalError",
        words("").progress,
        words("").dataset,
    )


def test_a_short_message_is_kept_whole() -> None:
    back = Termination.from_text(words("row 7 has an empty answer").to_text())
    assert back is not None
    assert back.message == "row 7 has an empty answer"


def test_a_long_message_keeps_its_beginning() -> None:
    back = Termination.from_text(words("the cause. " + "x" * 9000).to_text())
    assert back is not None
    assert back.message.startswith("the cause. ")
    assert back.message.endswith("[…]")
    assert len(back.message) > 2000


@given(st.one_of(st.none(), st.text(), st.binary().map(repr)))
def test_foreign_text_is_not_ours(text: str | None) -> None:
    assert Termination.from_text(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "[" * 4096,
        '{"a":' * 800,
        '{"phase":"train","attempt":1,"outcome":"Failed","exit_code":1,"message":"a\\ud800b"}',
        '{"phase":"train","attempt":1,"outcome":"Failed","exit_code":NaN}',
    ],
    ids=["deep", "deep objects", "half a surrogate pair", "no JSON number"],
)
def test_text_that_json_parsers_differ_about_is_not_ours(text: str) -> None:
    assert Termination.from_text(text) is None


A_ROUND: dict[str, Any] = {
    "round": 20, "prompts": 20_000, "answers": 80_000, "ended_share": 0.97123, "judged": 19_990, "ties": 1234, "pairs": 15_000,
    "left_out": dict.fromkeys(("tie", "gap", "length", "unfinished", "identical", "not_judged"), 12_345), "judge_calls": 120_000,
    "judge_cached": 12, "judge_tokens": 123_456_789, "order_agreement": 0.81234, "longer_wins": 0.56789, "score_mean": -1.23456,
    "score_best": 2.34567, "gap_median": 1.11111, "generation_tokens": 40_960_000, "kl_to_initial": 12.3456, "own_nll": 1.23456,
    "win_rate_previous": 0.54321, "win_rate_initial": 0.65432, "win_rate_error": 0.03535, "win_rate_length_controlled": 0.61111,
}  # fmt: skip


def test_a_judge_s_rounds_and_their_message_fit_a_termination() -> None:
    """A round stands once, so that the message keeps its beginning."""
    report = RoundReport(**A_ROUND, ended="RoundsWorse")
    said = words("the cause. " + "x" * 9000).model_copy(update={"phase": "judge", "round": report, "compared": report})
    assert said.progress is not None
    said = said.model_copy(update={"progress": said.progress.model_copy(update={"round": report})})
    text = said.to_text()
    back = Termination.from_text(text)
    assert len(text.encode()) <= MAX_TERMINATION_BYTES
    assert back is not None
    assert (back.round, back.compared, back.progress and back.progress.round) == (report, report, None)
    assert back.message.startswith("the cause.")


def test_a_leg_of_a_sweep_fits_a_termination() -> None:
    leg = LegReport(leg=3, outcome="Unhealthy", settings="beta 0.1", message="𝕏" * 300, steps=7)
    said = words("x" * 9000).model_copy(update={"leg": leg})
    text = said.to_text()
    back = Termination.from_text(text)
    assert len(text.encode()) <= MAX_TERMINATION_BYTES
    assert back is not None
    assert back.leg is not None
    assert (back.leg.leg, back.leg.steps, back.leg.settings) == (3, 7, "beta 0.1")
    assert len(back.leg.message) <= 60
    assert back.message.startswith("xxx")


@pytest.mark.parametrize(
    "wrong",
    [{"win_rate_previous": 1.5}, {"kl_to_initial": float("nan")}, {"pairs": -1}, {"round": 0}, {"round": 22}, {"ended": "Happily"}],
)  # fmt: skip
def test_a_round_with_impossible_figures_is_not_ours(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RoundReport(**A_ROUND | wrong)


def test_a_round_in_the_status_is_small_and_has_every_figure() -> None:
    status = RoundStatus.of(RoundReport(**A_ROUND, ended="Saturated"))
    assert (status.win_rate_previous, status.kl_to_initial, status.pairs, status.ended) == (
        "0.5432",
        "12.35",
        15_000,
        "Saturated",
    )
    assert RoundReport.model_fields.keys() - RoundStatus.model_fields.keys() == {"left_out"}
    extreme = RoundStatus.of(RoundReport(round=1, score_mean=-1e12, own_nll=-1.23456e-11))
    assert RoundStatus.model_validate(extreme.model_dump()) == extreme
