"""Numbers in the status."""

import json
from datetime import timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dpo_operator.api.failurepolicy import FailurePolicy
from dpo_operator.api.quantity import duration
from dpo_operator.api.reports import DatasetReport, Metrics, Progress, UnitsReport
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.planning import transitions
from dpo_operator.planning.failures import job_deleted
from dpo_operator.planning.progress import number, progress_status, with_dataset, with_reading
from dpo_operator.planning.restarts import after_failure
from dpo_operator.planning.transitions import Moment
from tests.unit.planning.build import NOON, a_child, a_pod, a_reading, a_status, a_view, decide, ended

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (45.4, "45s"),
        (60, "1m"),
        (330, "5m30s"),
        (4350, "1h12m"),
        (7200, "2h"),
        (273_600, "3d4h"),
        (-1, "0s"),
    ],
)
def test_duration_shows_two_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        (0.0, "0.0000"),
        (0.693147, "0.6931"),
        (-12.5, "-12.5000"),
        (5e-7, "5.000e-07"),
        (1e9, "1.000e+09"),
        (float("nan"), "nan"),
    ],
)
def test_number_keeps_what_matters(value, text):
    assert number(value) == text


def read(status, reading, seconds):
    return with_reading(status, reading, NOON + timedelta(seconds=seconds))


def test_small_changes_wait_for_the_next_write():
    first = read(a_status(), a_reading(10), 0)
    assert read(first, a_reading(11), 3) == first
    assert read(first, a_reading(12), 6).progress.step == 12


def test_units_of_a_round_are_shown_while_they_are_made():
    trained = read(a_status(), a_reading(10), 0)
    generating = a_status("generate", progress=trained.progress)
    units = UnitsReport(done=3, total=8, answers=96)
    status = read(generating, a_reading(0, phase="generate", units=units), 6)
    assert (status.progress.step, status.progress.units.done, status.progress.units.answers) == (10, 3, 96)
    more = a_reading(0, phase="generate", units=units.model_copy(update={"done": 4}))
    assert read(status, more, 8) == status
    assert read(status, more, 12).progress.units.done == 4
    assert read(a_status(progress=status.progress), a_reading(1), 14).progress.units is None


def test_an_estimate_that_drifts_is_no_news():
    first = read(a_status(), a_reading(10), 0)
    assert read(first, a_reading(10, eta_seconds=9.0, pairs_per_second=3.0), 60) == first


@pytest.mark.parametrize(
    "reading",
    [a_reading(11, checkpoint=11), a_reading(11, activity="evaluation"), a_reading(100)],
    ids=["checkpoint", "activity", "last step"],
)
def test_news_does_not_wait(reading):
    first = read(a_status(), a_reading(10), 0)
    assert read(first, reading, 1) != first


@pytest.mark.parametrize(
    "reading", [None, a_reading(50, attempt=2), a_reading(50, phase="prepare")], ids=["none", "attempt", "phase"]
)
def test_reading_of_something_else_is_ignored(reading):
    assert read(a_status(), reading, 0) == a_status()


def test_export_does_not_hide_what_training_reached():
    exporting = a_status("export", progress=read(a_status(), a_reading(100), 0).progress)
    reading = Progress(phase="export", attempt=1, activity="exporting")
    shown = with_reading(exporting, reading, NOON, at_once=True).progress
    assert (shown.step, shown.max_steps, shown.percent, shown.loss) == (100, 100, "100%", "0.6312")
    assert (shown.activity, shown.eta) == ("exporting", None)


@pytest.mark.parametrize("end", ["failed", "restarted", "suspended", "completed"])
def test_nothing_is_expected_of_pods_that_are_gone(end):
    at, status = Moment(NOON, 1), read(a_status(), a_reading(10, activity="training", pairs_per_second=3.0), 0)
    match end:
        case "failed":
            after = transitions.failed(status, "NoProgress", "It did not get further.", at)
        case "restarted":
            after = after_failure(status, job_deleted("pairs-train-1"), FailurePolicy(), at).status
        case "suspended":
            after = transitions.suspended(status, at)
        case _:
            after = transitions.completed(status, at)
    shown = after.progress
    assert (shown.step, shown.loss) == (10, "0.6312")
    assert (shown.eta, shown.eta_seconds, shown.activity, shown.pairs_per_second) == (None,) * 4
    assert after.workers.started == 0


def test_checkpoint_of_an_earlier_attempt_never_replaces_a_later_one():
    later = read(a_status(attempt=2), a_reading(60, attempt=2, checkpoint=60), 0)
    fenced = a_reading(70, attempt=2)
    fenced = fenced.model_copy(update={"checkpoint": a_reading(70, attempt=1, checkpoint=70).checkpoint})
    assert read(later, fenced, 60).checkpoint.step == 60


def test_many_reasons_of_dropped_rows_stay_bounded():
    report = DatasetReport(train_pairs=1, eval_pairs=0, dropped={f"reason-{i}": i for i in range(100)})
    dataset = with_dataset(a_status("prepare"), report).dataset
    assert (len(dataset.dropped), dataset.dropped_rows) == (32, sum(range(100)))
    assert "reason-99" in dataset.dropped


NUMBERS = st.one_of(st.integers(), st.floats(), st.just(10**30), st.just(-1))


@pytest.mark.parametrize(
    ("margin", "error", "expected"),
    [
        (1.1, 0.1, "0.96"),
        (1.1, None, "0.96"),
        (None, None, "0.96"),
        (0.05, 0.03, "0.96 (margin within noise)"),
        (-0.05, 0.03, "0.96 (margin within noise)"),
        (0.06, 0.03, "0.96"),
        (0.001, 0.0001, "0.96 (margin near 0)"),
        (-0.001, None, "0.96 (margin near 0)"),
    ],
)
def test_an_accuracy_says_when_its_margin_means_nothing(margin: float | None, error: float | None, expected: str):
    values = Metrics(reward_accuracy=0.96, reward_margin=margin, reward_margin_se=error)
    shown = progress_status(a_reading(train=values, eval=values), NOON)
    assert (shown.accuracy, shown.eval_accuracy) == (expected, expected)
    assert shown.eval_reward_margin_se == number(error)
    assert progress_status(a_reading(train=Metrics()), NOON).accuracy is None


METRICS = st.fixed_dictionaries({}, optional=dict.fromkeys(("loss", "reward_margin", "reward_accuracy"), NUMBERS))
FIELDS = ("step", "max_steps", "epoch", "last_step_at", "eta_seconds", "pairs_per_second", "resumed_from_step")
CHECKPOINTS = st.fixed_dictionaries(
    {"step": NUMBERS, "path": st.text(), "digest": st.just("a" * 64), "attempt": st.just(1), "time": NUMBERS}
)
READINGS = st.fixed_dictionaries(
    {"phase": st.just("train"), "attempt": st.just(1)},
    optional=dict.fromkeys(FIELDS, NUMBERS)
    | {"activity": st.text(), "train": METRICS, "eval": METRICS, "checkpoint": CHECKPOINTS},
)


@settings(max_examples=500)
@example({"phase": "train", "attempt": 1, "train": {"reward_accuracy": 1e61, "reward_margin": 1.0}})
@given(READINGS)
def test_whatever_a_pod_says_is_refused_or_can_be_written(said):
    """A tenant's pod that sends absurd numbers must not keep its job from being looked after, suspended or ended."""
    try:
        read = Progress.model_validate_json(json.dumps(said))
    except ValidationError:
        return
    shown = decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1), progress=read)).status
    assert DPOJobStatus.model_validate(shown.to_dict()) == shown
    assert all(abs(value) < 2**63 for value in whole_numbers(shown.to_dict()))
    text = json.dumps({"phase": "train", "attempt": 1, "outcome": "Failed", "exit_code": 70, "progress": said})
    decide(a_status(), a_view(a_child(), ended(0, 70, text=text), a_pod(1)))


def whole_numbers(found):
    """All integers of a document: the API server's have 64 bits."""
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list):
        return [number for part in found for number in whole_numbers(part)]
    return [found] if isinstance(found, int) else []
