"""Specs that this operator can't read."""

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.api.status import DPOJobStatus, State
from dpo_operator.planning.rejecting import reject_unreadable
from dpo_operator.planning.validate import Problems, read_job
from tests.unit.planning.build import NOON, a_job, a_status, a_view, condition, decide

pytestmark = pytest.mark.unit


def raw(**spec):
    job = a_job().model_dump(mode="json", by_alias=True, exclude_none=True)
    return {**job, "spec": job["spec"] | spec, "status": {"state": "whatever"}}


def test_stored_job_is_read_with_its_status_ignored():
    assert read_job(raw()).metadata.name == "pairs"


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"nodes": 0}, "spec.nodes"),
        ({"colour": "red"}, "spec.colour"),
        ({"training": {"epochs": "x"}}, "spec.training.epochs"),
    ],
)
def test_problem_names_the_field_and_what_was_found(spec, path):
    problems = read_job(raw(**spec))
    assert isinstance(problems, Problems)
    assert path in problems.describe()
    assert "found" in problems.describe()


def test_a_job_that_is_too_large_for_its_file_fails_at_once():
    columns = dict.fromkeys(
        ("prompt", "chosen", "rejected", "completion", "label", "responses", "scores"), "\U0001f600" * 128
    )
    more = [{"source": "é" * 256, "columns": columns}] * 32
    job = a_job(
        model={"name": "m", "chatTemplate": "\U0001f600" * 32768},
        data={"train": {"source": "org/pairs"}, "mixture": more},
    )
    result = decide(DPOJobStatus(), a_view(), job)
    assert condition(result.status, c.FAILED) == ("True", c.INVALID_SPEC)
    assert "at most 262,144 fit" in result.status.message


def test_unreadable_new_job_fails():
    problems = read_job(raw(nodes=0))
    result = reject_unreadable(DPOJobStatus(), problems, generation=1, now=NOON)
    assert result.status.state is State.FAILED
    assert condition(result.status, c.FAILED) == ("True", c.INVALID_SPEC)


def test_unreadable_running_job_is_left_alone_and_told_once():
    problems = read_job(raw(colour="red"))
    first = reject_unreadable(a_status(), problems, generation=1, now=NOON)
    assert (first.status.state, first.status.attempts, first.actions) == (a_status().state, a_status().attempts, ())
    assert "spec.colour" in first.status.message
    second = reject_unreadable(first.status, problems, generation=1, now=NOON)
    assert (second.status, second.events) == (first.status, ())


def test_status_survives_the_api_server():
    status = a_status(counted_restart_times=[1, 2], furthest_step=3)
    assert DPOJobStatus.model_validate(status.to_dict()) == status


def test_another_controllers_unreadable_job_is_left_alone():
    problems = Problems(c.INVALID_SPEC, ("spec.nodes: too many",))
    result = reject_unreadable(DPOJobStatus(), problems, generation=1, now=NOON, manager="example.org/other")
    assert (result.status, result.events, result.actions) == (DPOJobStatus(), (), ())
