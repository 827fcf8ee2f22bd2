"""The warning that a job is predicted not to fit: when it comes, what it says, and that nothing waits for it."""

from typing import Any

import pytest

from dpo_operator.api.models.config import shape_of
from dpo_operator.api.reports import DatasetReport, TokenReport
from dpo_operator.planning.actions import Event, Plan
from dpo_operator.planning.fit import predicted_not_to_fit
from dpo_operator.planning.plan import Settings, plan
from tests.unit.planning.build import NOON, SETTINGS, a_child, a_job, a_pod, a_status, a_view, ended, termination_text
from tests.unit.sizing.build import QWEN_7B, SMALL

pytestmark = pytest.mark.unit

TOKENS = TokenReport(prompt=500, chosen=500, rejected=500, longest=3000)
GIB = 2**30


def report(config: dict[str, Any], **fields: Any) -> DatasetReport:
    found = {"train_pairs": 10, "eval_pairs": 0, "model": shape_of(config), "tokens": TOKENS}
    return DatasetReport(**found | fields)


def after_prepare(found: DatasetReport, gpu_memory: float | None, **spec: Any) -> Plan:
    words = termination_text(0, phase="prepare", dataset=found.model_dump(mode="json"))
    pod = ended(0, 0, text=words, phase="prepare")
    seen = a_view(a_child("prepare", complete=True), pod)
    settings = Settings(SETTINGS.image, gpu_memory=gpu_memory)
    return plan(a_job(**spec), a_status("prepare"), seen, NOON, settings)


def warnings(decision: Plan) -> list[Event]:
    return [event for event in decision.events if event.type == "Warning"]


def test_a_job_that_will_not_fit_is_warned_of_and_goes_on() -> None:
    decision = after_prepare(report(QWEN_7B), 24 * GIB)
    (warning,) = warnings(decision)
    assert warning.reason == "PredictedNotToFit"
    assert "the memory of a GPU is 24.0 GiB" in warning.message
    assert "offload: cpu" in warning.message
    assert len(warning.message) <= 1024
    quiet = after_prepare(report(QWEN_7B), 1000 * GIB)
    assert warnings(quiet) == []
    assert (decision.status, decision.actions) == (quiet.status, quiet.actions)
    assert decision.status.phase == "train"


def test_it_comes_once() -> None:
    decision = after_prepare(report(QWEN_7B), 24 * GIB)
    later = plan(a_job(), decision.status, a_view(), NOON, Settings(SETTINGS.image, gpu_memory=24 * GIB))
    running = plan(
        a_job(), a_status("train"), a_view(a_child(), a_pod(0), a_pod(1)), NOON,
        Settings(SETTINGS.image, gpu_memory=24 * GIB),
    )  # fmt: skip
    assert warnings(later) == warnings(running) == []


@pytest.mark.parametrize(
    ("found", "gpu_memory"),
    [(report(QWEN_7B), None), (report(QWEN_7B, model=None), GIB), (report(QWEN_7B, tokens=None), GIB)],
    ids=["memory", "model", "tokens"],
)
def test_nothing_is_said_where_something_is_not_known(found: DatasetReport, gpu_memory: float | None) -> None:
    assert warnings(after_prepare(found, gpu_memory)) == []


def test_a_job_without_gpus_is_held_against_its_pods_memory() -> None:
    def said(limit: str) -> list[Event]:
        pod = {"resources": {"limits": {"memory": limit}}}
        return warnings(after_prepare(report(SMALL), None, nodes=1, gpusPerNode=0, pod=pod))

    (warning,) = said("512Mi")
    assert "spec.pod.resources.limits.memory is 512 MiB" in warning.message
    assert said("4Gi") == []
    assert warnings(after_prepare(report(SMALL), None, nodes=1, gpusPerNode=0)) == []


def test_an_estimate_that_is_a_little_over_is_no_warning() -> None:
    spec = a_job().spec
    over = [gib for gib in range(1, 200) if predicted_not_to_fit(spec, report(QWEN_7B), gib * GIB)]
    assert over == list(range(1, len(over) + 1))
    assert 20 < len(over) < 199


def test_absurd_reports_are_no_error() -> None:
    big = 1 << 22
    shape = shape_of(
        SMALL | {"hidden_size": big, "intermediate_size": big, "num_hidden_layers": 1 << 14, "vocab_size": big}
    )
    for length in (0.0, 1e9):
        tokens = TokenReport(prompt=length, chosen=length, rejected=0, longest=length)
        assert predicted_not_to_fit(a_job().spec, report(SMALL, model=shape, tokens=tokens), GIB) is not None
