"""What `why` and `status` tell of rounds."""

import pytest

from dpo_operator.api.status import ProgressStatus
from dpo_operator.api.statusparts.rounds import RoundStatus
from dpo_operator.cli.statusview import details
from dpo_operator.explain.rounds import round_figures
from dpo_operator.explain.why import why
from tests.unit.explain.cases import case, container, raw_pod, waits
from tests.unit.planning.build import NOON, a_child, a_job, a_pod, a_status, a_view, decide

pytestmark = pytest.mark.unit

JUDGE = {"judge": {"type": "builtin", "builtin": {"name": "length", "tokens": 5}}}
KNOWN = [
    RoundStatus(round=1, pairs=60, prompts=100, win_rate_previous="0.62", win_rate_error="0.03", kl_to_initial="0.9"),
    RoundStatus(round=2, pairs=5, prompts=100, ended="Saturated"),
]


def test_why_tells_what_the_rounds_have_brought() -> None:
    job = a_job(iterative=JUDGE)
    status = a_status("judge", round=2, rounds=KNOWN)
    running = decide(status, a_view(a_child("judge"), a_pod(0, "judge")), job).status
    told = "\n".join(
        line for part in vars(why(case(running, job))).values() for line in ([part] if isinstance(part, str) else part)
    )
    assert "is running the judging of round 2" in told
    assert (
        "Round 1: 60 pairs of 100 prompts, wins 0.62 ± 0.03 against the policy before, KL 0.9 nats an answer when it began."
        in told
    )
    assert "the rounds end: Saturated" in told
    assert "Then the round is trained on the pairs" in told


@pytest.mark.parametrize(
    ("pod", "which"),
    [
        ({"generateImage": "own/vllm:1"}, "It is spec.pod.generateImage, now own/vllm:1."),
        ({}, "It is the operator's, the chart's values generator.image.*."),
    ],
)
def test_why_names_the_image_with_vllm(pod: dict[str, str], which: str) -> None:
    waiting = container(waiting={"reason": "ImagePullBackOff", "message": "not found"})
    job = a_job(iterative=JUDGE | {"generation": {"engine": "vllm"}}, pod=pod)
    told = why(waits(raw_pod(0, "generate", node="gpu-0", **waiting), job=job, phase="generate"))
    assert which in str(vars(told))


def test_status_has_a_row_for_each_round() -> None:
    raw = {
        "metadata": {"name": "pairs", "namespace": "default"},
        "status": a_status("train", round=2, rounds=KNOWN).to_dict(),
    }
    rows = dict(details(raw, NOON))
    assert rows["round"] == "2"
    assert rows["  round 1"].startswith("60 pairs of 100 prompts")
    plain = dict(details(raw | {"status": a_status().to_dict()}, NOON))
    assert "round" not in plain


def test_status_says_how_far_answers_are_judged() -> None:
    units = {"done": 3, "total": 6, "answers": 48, "judge_calls": 120, "judge_cached": 7}
    status = a_status("judge", round=1, progress=ProgressStatus.model_validate({"units": units}))
    rows = dict(details({"metadata": {"name": "pairs"}, "status": status.to_dict()}, NOON))
    assert rows["units"].endswith("3 of 6, 48 answers, 120 calls, 7 verdicts known from before")


def test_a_round_that_only_compared_says_so():
    shown = round_figures(RoundStatus(round=3, kl_to_initial="0.124", ended_share="1.0"))
    assert (
        shown
        == "compared only, nothing to train on, KL 0.124 nats an answer when it began, share of the answers that ended 1.0"
    )
