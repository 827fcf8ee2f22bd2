"""The answer to why: a golden text for each situation, and what all of them must hold."""

import json
import re
from dataclasses import replace

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.api.diagnosis import Code
from dpo_operator.api.rules.spec import IMMUTABLE_FIELDS
from dpo_operator.explain.case import Case, Place
from dpo_operator.explain.endings import ENDINGS, EXHAUSTED
from dpo_operator.explain.waits import WAITS
from dpo_operator.explain.why import why
from dpo_operator.planning import failures
from dpo_operator.planning.transitions import Moment, mark
from tests.unit.explain.cases import a_finding, waits
from tests.unit.explain.cases import raw_pod as pod_of
from tests.unit.explain.running import completes, runs
from tests.unit.explain.situations import GOLDEN, SITUATIONS
from tests.unit.planning.build import NOON
from tests.unit.planning.test_words_of_strangers import EVIL, INVISIBLE

pytestmark = pytest.mark.unit

TEXTS = dict(re.findall(r"^=== (.*)\n((?:(?!=== ).*\n)*)", GOLDEN.read_text(), re.MULTILINE))
# What each situation must name, beside what the golden text holds: its cause.
CAUSES = {
    "no node has room": "2 Insufficient nvidia.com/gpu",
    "a quota is used up": "exceeded quota: gpus",
    "its image does not exist": "registry.example/trainer:0.9",
    "its token does not exist": 'secret "hf" not found',
    "its claim has no volume": "unbound immediate PersistentVolumeClaims",
    "it waits for its turn": "2 of 2 other waiting jobs asked earlier",
    "its ranks hang": "pod pairs-train-1-1-x7k2p on node gpu-1 did not answer",
    "a pod was evicted": "evicted",
    "it was restarted too often": "illegal memory access",
    "exit code 74": "no space left on device",
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_text_of_a_situation_is_the_golden_one(name: str) -> None:
    """`python -m tests.unit.explain.situations` writes the golden texts again; read what changed."""
    assert why(SITUATIONS[name]()).text() == TEXTS[name].rstrip("\n") + "\n"


def test_no_golden_text_is_left_over() -> None:
    assert list(TEXTS) == list(SITUATIONS)


@pytest.mark.parametrize("name", CAUSES)
def test_a_text_names_its_cause(name: str) -> None:
    assert CAUSES[name] in why(SITUATIONS[name]()).text()


def test_each_reason_to_wait_has_its_row() -> None:
    """Those that planning gives to Running=False, as the table of conditions lists them."""
    waiting = (
        c.PENDING, c.PODS_PENDING, c.UNSCHEDULABLE, c.QUOTA_EXCEEDED, c.ADMISSION_DENIED, c.PRIORITY_CLASS_NOT_FOUND,
        c.PODS_REFUSED, c.SECRET_NOT_FOUND, c.MOUNT_FAILED, c.IMAGE_PULL_FAILED, c.CONTAINER_CONFIG_ERROR, c.VOLUME_NOT_FOUND,
        c.VOLUME_PENDING, c.VOLUME_TERMINATING, c.VOLUME_UNSUITABLE, c.NAME_CONFLICT, c.REQUEST_REFUSED, c.STOPPING_OLD_PODS,
        c.BACKING_OFF, c.QUEUED, c.GANG_TIMED_OUT, c.NOT_ALLOWED,
    )  # fmt: skip
    assert set(waiting) == set(WAITS)


def test_each_reason_of_a_failure_has_its_row() -> None:
    assert failures.REASONS - ENDINGS.keys() == set()
    assert not ENDINGS.keys() & EXHAUSTED.keys()


@pytest.mark.parametrize("name", [name for name in SITUATIONS if "exit code" in name or "its" in name])
def test_whoever_waits_or_failed_is_told_what_comes_next(name: str) -> None:
    found = why(SITUATIONS[name]())
    assert found.kind in ("pending", "restarting", "failed")
    assert found.cause
    assert found.next


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_patch_changes_only_what_may_change(name: str) -> None:
    for change in re.findall(r"patch dpojob pairs --type=merge -p '(.*?)'", why(SITUATIONS[name]()).text()):
        assert not json.loads(change)["spec"].keys() & set(IMMUTABLE_FIELDS)


@pytest.mark.parametrize("code", Code)
def test_a_finding_is_told_in_its_own_sentence_with_its_figures(code: Code) -> None:
    finding = a_finding(code)
    for case in (runs(findings=(finding,)), completes((finding,))):
        text = why(case).text()
        assert finding.sentence in text
        assert "eval_rewards/margins -0.84 (limit -0.2), eval_loss 1.227" in text
        assert f"spec.{finding.setting} in the job file" in text
        assert code in text.splitlines()[0]


def test_after_a_stop_by_diagnosis_the_list_may_change() -> None:
    case = SITUATIONS["exit code 81"]()
    assert """'{"spec":{"diagnosis":{"stopOn":["FlatLoss"]}}}'""" in why(case).text()
    assert "kubectl dpo retry pairs" in why(case).text()
    here = replace(case, place=Place(cluster="", folder="runs/pairs"))
    (line,) = [line for line in why(here).do if "spec.diagnosis.stopOn" in line]
    assert "--fresh" not in line
    assert any("dpo run FILE" in line and "--fresh" not in line for line in why(here).do)


def test_accuracy_is_never_shown_without_the_margin() -> None:
    for line in why(runs()).text().splitlines():
        assert "accuracy" not in line or "margin" in line


def test_what_strangers_say_moves_no_cursor_and_starts_no_line() -> None:
    words = {"conditions": [{"type": "PodScheduled", "status": "False", "message": EVIL}]}
    event = {
        "involvedObject": {"kind": "Pod", "name": EVIL}, "type": "Warning", "reason": EVIL, "message": EVIL,
        "lastTimestamp": "2026-01-01T12:02:00Z",
    }  # fmt: skip
    case = waits(pod_of(0, **words), pod_of(1, **words))
    case = Case.from_raw(
        {"metadata": {"name": EVIL, "namespace": EVIL}, "spec": {}, "status": case.status.to_dict()},
        now=case.now, place=case.place, pods=[pod_of(0, **words)], events=[event],
    )  # fmt: skip
    text = why(case).text()
    assert all(line.isprintable() for line in text.splitlines())
    assert not set(text) & set(INVISIBLE)
    assert not any(line.startswith("Warning") for line in text.splitlines())


def test_what_could_not_be_read_is_said() -> None:
    case = replace(runs(), unread=("Its events could not be read: forbidden",))
    assert "Its events could not be read: forbidden" in why(case).text()


def test_a_status_of_another_version_is_no_error() -> None:
    case = Case.from_raw(
        {
            "metadata": {"name": "pairs"},
            "spec": {"new": 1},
            "status": {"state": "Dreaming", "findings": [{"code": 1}, 3]},
        },
        now=runs().now,
        place=runs().place,
    )
    assert why(case).kind == "unseen"


def test_a_copy_that_failed_is_told_beside_the_training() -> None:
    case = runs()
    at = Moment(NOON, 1)
    status = mark(case.status, at, c.MIRRORED, False, "AccessDenied", "Copy 1 to s3://b/k failed: access was refused.")
    assert "AccessDenied: Copy 1 to s3://b/k failed: access was refused." in why(replace(case, status=status)).text()
