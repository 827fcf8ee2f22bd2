import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_operator.api.reports import MAX_TERMINATION_BYTES, CheckpointRef, DatasetReport, Progress, Termination

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
