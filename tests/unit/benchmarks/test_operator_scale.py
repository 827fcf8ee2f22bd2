"""The benchmark at scale: what it computes from what it reads, and what its pods and trainers say."""

import json
import math

import pytest

from benchmarks import kwok
from benchmarks.operator_scale import PARTS, chosen, shares
from benchmarks.operator_scale_rig import Figure, Pods, Wait, bucket_p99, comparison, p99, passes
from dpo_operator.api import names
from dpo_operator.api.reports import Termination
from dpo_operator.queueing.key import Key

pytestmark = pytest.mark.unit


def test_most_jobs_have_ended_and_no_more_than_500_run():
    assert shares(100) == (50, 12, 38)
    assert shares(10_000) == (500, 2375, 7125)
    assert all(sum(shares(jobs)) == jobs for jobs in (1, 2, 99, 1000, 10_000))


def test_a_part_brings_those_that_it_needs():
    assert chosen(["storm"]) == ["burst", "storm"]
    assert chosen(["delete", "steady"]) == ["burst", "steady", "hostile", "delete"]
    assert chosen(list(PARTS)) == list(PARTS)


def test_p99_is_one_of_the_values():
    assert p99([3.0, 1.0, 2.0]) == 3.0
    assert p99([float(i) for i in range(1, 201)]) == 198.0
    with pytest.raises(ValueError, match="no values"):
        p99([])


def test_p99_of_a_part_leaves_out_what_came_before():
    before = {("0.1",): 1000.0, ("1.0",): 1000.0, ("+Inf",): 1000.0}
    after = {("0.1",): 1010.0, ("1.0",): 1100.0, ("+Inf",): 1100.0}
    assert bucket_p99(before, after) == 1.0
    assert bucket_p99(before, before) == 0.0
    assert math.isinf(bucket_p99(before, after | {("+Inf",): 1110.0}))


def test_figures_above_their_bar_or_not_reached_are_missed():
    assert not Figure("a", 10.0, "s", 10.0).missed
    assert Figure("a", 10.1, "s", 10.0).missed
    reached, late = Wait(600.0, 500, 500).figure("a"), Wait(600.0, 480, 500).figure("a")
    assert (reached.missed, reached.text()) == (False, "600")
    assert (late.missed, late.text()) == (True, "> 600 (480 of 500)")


def test_table_has_a_column_for_each_number_of_jobs():
    made = comparison({100: [Figure("one", 1.0, "s", 5.0)], 1000: [Figure("two", 2.0, "MiB")]})
    cells = [list(column.cells) for column in made.columns]
    assert cells == [["one, s", "two, MiB"], ["1", ""], ["", "2"], ["≤ 5", ""]]


def test_jobs_that_wait_were_not_looked_at():
    text = (
        'dpojob_operator_handler_seconds_count{handler="reconcile",outcome="success"} 130\n'
        'dpojob_operator_handler_seconds_count{handler="resync",outcome="success"} 9\n'
        'dpojob_operator_queue_depth{lane="normal"} 10\n'
        'dpojob_operator_queue_depth{lane="slow"} 30\n'
    )
    assert passes(text, 100) == 60
    assert passes(text.replace("} 10\n", "} 0\n").replace("} 30\n", "} 2\n"), 100) == 100
    assert passes(text.replace("} 10\n", "} 0\n").replace("} 30\n", "} 2\n"), 200) == 130


def pod(uid: str, job: str, attempt: int, state: str, phase: str = "train"):
    labels = {names.LABEL_JOB: job, names.LABEL_ATTEMPT: str(attempt), names.LABEL_PHASE: phase}
    metadata = {"uid": uid, "name": uid, "namespace": "team", "labels": labels}
    return {"metadata": metadata, "status": {"phase": state}}


def test_gang_is_whole_when_all_pods_of_an_attempt_run():
    pods, job = Pods(), Key("team", "a")
    pods.take("ADDED", pod("p", "a", 1, "Running", "prepare"))
    assert pods.seen([job, Key("team", "b")]) == 1
    pods.take("ADDED", pod("1", "a", 1, "Running"))
    pods.take("ADDED", pod("2", "a", 1, "Pending"))
    assert pods.whole([job]) == 0
    pods.take("MODIFIED", pod("2", "a", 1, "Running"))
    assert (pods.whole([job]), pods.whole([job], 2)) == (1, 0)
    pods.take("DELETED", pod("1", "a", 1, "Running"))
    assert pods.whole([job]) == 0


@pytest.mark.parametrize("phase", kwok.PHASES)
def test_trainers_answer_for_the_attempt_that_their_address_names(phase):
    said = kwok.answer(kwok.address(phase, 7), 25.0)
    assert (said.phase, said.attempt, said.step) == (phase, 7, 2)


def test_last_words_of_pods_are_those_of_a_trainer():
    words = {}
    for stage in kwok.stages():
        template = json.loads(stage["spec"]["next"].get("statusTemplate", "{}"))
        (container,) = template.get("containerStatuses") or [{}]
        if said := container.get("state", {}).get("terminated", {}).get("message"):
            words[stage["metadata"]["name"]] = Termination.from_text(said.replace(kwok.ATTEMPT, "3"))
    assert {name: (w.phase, w.attempt, w.exit_code) for name, w in words.items() if w} == {
        "prepare-succeeds": ("prepare", 3, 0),
        "export-succeeds": ("export", 3, 0),
        "prepare-is-stopped": ("prepare", 3, 143),
        "train-is-stopped": ("train", 3, 143),
        "export-is-stopped": ("export", 3, 143),
    }
    assert words["prepare-succeeds"].dataset.train_pairs == 1000
    assert words["export-succeeds"].export_path == "export"
