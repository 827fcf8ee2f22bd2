"""What is told once reaches the log, the files and the HTTP server, each step once."""

import io
import json
import math
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dpo_operator.api.diagnosis import Finding
from dpo_operator.api.reports import CheckpointRecord, CheckpointRef, Progress
from dpo_trainer.checkpoint.folder import CheckpointFolder
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.telemetry.console import console, duration
from dpo_trainer.telemetry.metrics_file import MetricsFile, read_metrics
from dpo_trainer.telemetry.output import Record
from dpo_trainer.telemetry.prometheus import TrainerMetrics
from dpo_trainer.telemetry.server import bind_address
from dpo_trainer.telemetry.tensorboard import TensorBoardFile

pytestmark = pytest.mark.unit

METRICS = {
    "loss": 0.6312, "rewards/chosen": 0.1, "rewards/rejected": -0.03, "rewards/margins": 0.13, "rewards/accuracies": 0.75,
    "logps/chosen": -31.0, "logps/rejected": -40.0, "grad_norm": 2.5, "learning_rate": 4.1e-7,
    "logratio_per_token/chosen": -0.02, "logratio_per_token/rejected": -0.04, "response_tokens/chosen": 21.0,
    "response_tokens/rejected": 23.0, "margin_length_correlation": 0.3, "nll_loss": 1.7, "kl": 0.4, "entropy": 2.1,
    "mean_token_accuracy": 0.6, "log_odds_ratio": -0.6, "log_odds_chosen": 0.2, "num_tokens": 900.0,
}  # fmt: skip
EVALUATION = METRICS | {
    "generation_tokens/policy": 30.0, "generation_tokens/reference": 28.0, "length_baseline_accuracy": 0.55,
    "rewards/accuracies/le_64": 0.8, "rewards/accuracies/gt_1024": 0.6,
}  # fmt: skip
INFO = {"model": "org/name", "loss_type": "dpo", "peft": "none", "zero_stage": "3"}
CHECKPOINT = CheckpointRef(step=4, path="checkpoints/step-00000004", digest="ab" * 32, attempt=1, time=1000.0)


@pytest.fixture(autouse=True)
def _not_in_a_pod(monkeypatch: pytest.MonkeyPatch):
    for name in ("KUBERNETES_SERVICE_HOST", "DPO_BIND_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DPO_METRICS_PORT", "0")


def telemetry(folder: Path, attempt: int = 1, **ranks: int) -> tuple[Telemetry, io.StringIO]:
    shown = io.StringIO()
    return Telemetry(
        "train",
        attempt,
        WorkDir(folder),
        checkpoints=CheckpointFolder(WorkDir(folder).checkpoints),
        show=console(shown),
        **ranks,
    ), shown


def steps(news: Telemetry, *numbers: int, **changes: float) -> None:
    for number in numbers:
        news.step(number, epoch=number / 10, seconds=0.5, pairs=8, tokens=800, metrics={**METRICS, **changes})


def prometheus_text(metrics: TrainerMetrics) -> str:
    """What is exported, without the process's own figures, which change by themselves."""
    lines = generate_latest(metrics.registry).decode().splitlines()
    return "\n".join(line for line in lines if line.startswith("dpo_"))


def samples(news: Telemetry) -> dict[str, float]:
    """Name and labels -> value, as Prometheus reads them."""
    text = generate_latest(news.metrics.registry).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name + "".join(f"{{{k}={v}}}" for k, v in sorted(sample.labels.items()))] = sample.value
    return found


def test_the_error_of_a_margin_is_as_measured_or_of_the_steps_pairs(tmp_path: Path):
    news, _ = telemetry(tmp_path)
    news.begin(max_steps=10, info=INFO)
    news.step(1, epoch=0.1, seconds=1, pairs=16, tokens=9, metrics={**METRICS, "margins_std": 0.4, "pairs": 16.0})
    news.evaluation(1, {**EVALUATION, "rewards/margins_se": 0.02})
    assert (news.progress.train.reward_margin_se, news.progress.eval.reward_margin_se) == (0.1, 0.02)
    news.evaluation(2, EVALUATION)
    assert news.progress.eval.reward_margin_se is None


def test_the_worst_findings_of_the_newest_look_are_in_the_status(tmp_path: Path):
    news, _ = telemetry(tmp_path)
    assert news.progress.diagnosed_step is None
    many = [Finding(code="Shortcut", severity="Info", cause=str(n)) for n in range(6)]
    news.diagnosed(4, [*many, Finding(code="FlatLoss", severity="Unhealthy", cause="Flat.")])
    assert [finding.code for finding in news.progress.findings] == ["FlatLoss", *["Shortcut"] * 4]
    assert (news.progress.diagnosed_step, news.progress.findings_left_out) == (4, 2)
    news.diagnosed(8, [])
    assert (news.progress.findings, news.progress.findings_left_out) == ((), 0)


def test_a_step_reaches_prometheus_under_the_published_names(tmp_path: Path):
    news, _ = telemetry(tmp_path)
    news.begin(max_steps=10, checkpoint_interval=4, info=INFO)
    steps(news, 1, 2)
    news.evaluation(2, EVALUATION)
    news.checkpoint(CHECKPOINT, 3.0)
    news.nonfinite_step()
    news.attention("off", "sdpa")
    news.attention("shared", "varlen")
    news.initial_margin(0.0)
    news.initial_loss(0.693)
    found = samples(news)

    expected = {
        "dpo_train_info{loss_type=dpo}{model=org/name}{peft=none}{zero_stage=3}": 1,
        "dpo_train_attention_info{kernel=varlen}{packing=shared}": 1,
        "dpo_train_step": 2, "dpo_train_max_steps": 10, "dpo_train_epoch": 0.2, "dpo_train_loss": 0.6312,
        "dpo_train_reward{response=chosen}": 0.1, "dpo_train_reward{response=rejected}": -0.03,
        "dpo_train_reward_margin": 0.13, "dpo_train_reward_accuracy_ratio": 0.75,
        "dpo_train_logprob_nats{response=chosen}": -31, "dpo_train_logprob_nats{response=rejected}": -40,
        "dpo_train_grad_norm": 2.5, "dpo_train_learning_rate": 4.1e-7, "dpo_train_initial_margin": 0,
        "dpo_train_initial_loss": 0.693, "dpo_train_ref_logratio_nats_per_token{response=rejected}": -0.04,
        "dpo_train_response_tokens{response=chosen}": 21, "dpo_train_margin_length_correlation": 0.3,
        "dpo_train_nll_nats_per_token": 1.7, "dpo_train_kl_nats": 0.4, "dpo_train_entropy_nats": 2.1,
        "dpo_train_token_accuracy_ratio": 0.6, "dpo_train_log_odds_ratio": -0.6, "dpo_train_log_odds_chosen": 0.2,
        "dpo_eval_ref_logratio_nats_per_token{response=chosen}": -0.02, "dpo_eval_kl_nats": 0.4,
        "dpo_eval_response_tokens{response=rejected}": 23, "dpo_eval_margin_length_correlation": 0.3,
        "dpo_eval_generation_tokens{response=policy}": 30, "dpo_eval_generation_tokens{response=reference}": 28,
        "dpo_eval_reward_accuracy_by_length_ratio{bucket=le_64}": 0.8, "dpo_eval_length_baseline_accuracy_ratio": 0.55,
        "dpo_eval_reward_accuracy_by_length_ratio{bucket=gt_1024}": 0.6,
        "dpo_eval_loss": 0.6312, "dpo_eval_reward_margin": 0.13, "dpo_eval_reward{response=rejected}": -0.03,
        "dpo_train_pairs_total": 16, "dpo_train_tokens_total": 1600, "dpo_train_truncated_pairs_total": 0,
        "dpo_train_nonfinite_steps_total": 1, "dpo_train_step_seconds_count": 2, "dpo_train_step_seconds_sum": 1.0,
        "dpo_train_step_seconds_bucket{le=0.25}": 0, "dpo_train_step_seconds_bucket{le=600.0}": 2,
        "dpo_train_attempt": 1, "dpo_checkpoint_last_step": 4, "dpo_checkpoint_interval_steps": 4,
        "dpo_checkpoint_last_success_timestamp_seconds": 1000, "dpo_checkpoint_failures_total": 0,
        "dpo_checkpoint_seconds_count": 1,
    }  # fmt: skip
    assert {name: found.get(name) for name in expected} == expected
    for phase in ("data", "ref", "policy", "optimizer", "eval", "checkpoint"):
        assert found[f"dpo_train_phase_seconds_total{{phase={phase}}}"] == 0
    assert not any("{namespace=" in name or "{pod=" in name or "{job=" in name for name in found)


def test_a_value_that_is_not_finite_leaves_the_last_finite_one(tmp_path: Path):
    news, _ = telemetry(tmp_path)
    news.begin(max_steps=10)
    steps(news, 1)
    steps(news, 2, loss=math.nan)

    assert samples(news)["dpo_train_loss"] == 0.6312
    assert news.progress.train.loss == 0.6312
    # JSON has no NaN; a reader gets null and not a syntax error.
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])["loss"] is None


def test_the_loss_that_a_run_starts_at_outlives_a_restart(tmp_path: Path):
    first, _ = telemetry(tmp_path)
    first.begin(max_steps=10)
    first.initial_loss(0.693)
    steps(first, 2, 4)
    first.close()
    second, _ = telemetry(tmp_path, attempt=2)
    second.begin(max_steps=10, resumed_step=2, checkpoint=CHECKPOINT)

    assert samples(second)["dpo_train_initial_loss"] == 0.693
    assert [line.get("initial_loss") for line in read_metrics(tmp_path / "metrics.jsonl")] == [0.693]


def test_what_was_measured_before_the_first_step_outlives_a_restart(tmp_path: Path):
    first, shown = telemetry(tmp_path)
    first.begin(max_steps=10)
    values = {"surprise/first4_chosen": 3.7, "token_accuracy/chosen": 0.8, "samples/t1/own_nll": 0.5}
    first.before_first_update(values)
    steps(first, 1, 2)
    first.close()
    assert samples(first)["dpo_eval_surprise_ratio{tokens=first4_chosen}"] == 3.7
    assert samples(first)["dpo_eval_sample_own_nll_nats_per_token"] == 0.5
    assert first.progress.eval.loss is None
    second, _ = telemetry(tmp_path, attempt=2)
    second.begin(max_steps=10)
    second.before_first_update({"samples/t1/own_nll": 0.6})
    second.close()
    [line] = read_metrics(tmp_path / "metrics.jsonl")
    assert line == {
        "step": 0,
        "epoch": 0.0,
        **{f"eval_{key}": value for key, value in values.items()},
        "time": line["time"],
    }
    assert samples(second)["dpo_eval_surprise_ratio{tokens=first4_chosen}"] == 3.7
    assert "eval" not in shown.getvalue()


def test_each_source_of_a_mixture_is_a_label(tmp_path: Path):
    news, _ = telemetry(tmp_path)
    news.begin(max_steps=10)
    steps(news, 1, **{"source/mixture[0]/accuracies": 0.6, "source/mixture[0]/pairs": 5.0, "source/train/margins": 0.1})
    found = samples(news)
    assert found["dpo_train_source_reward_accuracy_ratio{source=mixture[0]}"] == 0.6
    assert found["dpo_train_source_reward_margin{source=train}"] == 0.1


def test_every_metric_of_the_trainer_is_exported():
    from dpo_operator.api.method import Method
    from dpo_trainer.losses import by_length, by_token, spread
    from dpo_trainer.losses import metrics as logged
    from dpo_trainer.losses.objective import Logps, Objective

    def figures_of(**method: object) -> dict[str, float]:
        import torch

        objective, ones = Objective(Method.model_validate(method)), torch.ones(2, 2, dtype=torch.float64)
        logps = Logps(policy=-ones, policy_head=-ones, tokens=ones.long(), reference=-ones, reference_head=-ones)
        counts, kl = torch.ones(2, dtype=torch.bool), torch.zeros(()) if objective.needs_kl else None
        found = logged.sums(objective, logps, objective.loss(logps, kl), kl, counts)
        found |= by_length.bucket_sums(logps, objective.rewards(logps), counts)
        found |= spread.spread_sums(
            objective, logps, objective.loss(logps, kl), counts, torch.zeros(2), ("mixture[0]",)
        )
        found |= by_token.token_sums(torch.tensor([0, 1]), torch.ones(2), torch.ones(2).double(), counts)
        whole = {name: value.item() for name, value in found.items()}
        values = logged.means(whole, None if kl is None else 0.0) | by_length.bucket_means(whole)
        values |= spread.standard_errors(whole) | spread.spread_means(whole) | by_token.token_means(whole, by_side=True)
        # The mean of both sides is training's, and the number of pairs is that of the data.
        return {key: value for key, value in values.items() if key not in ("pairs", "entropy", "mean_token_accuracy")}

    for name in ("dpo", "kto", "orpo", "simpo"):
        metrics = TrainerMetrics(rank_zero=True)
        for key in figures_of(name=name):
            before = prometheus_text(metrics)
            metrics.shared.values("eval", {key: 0.4321})
            assert prometheus_text(metrics) != before, key


def test_a_run_that_ends_early_is_a_whole_run(tmp_path: Path):
    news, shown = telemetry(tmp_path)
    news.begin(max_steps=40)
    steps(news, 9, 10)
    news.ended("Stopped early after step 10 of 40.")

    assert (news.progress.step, news.progress.max_steps, news.progress.eta_seconds) == (10, 10, None)
    assert samples(news)["dpo_train_max_steps"] == 10
    assert "Stopped early after step 10 of 40." in shown.getvalue()


def test_what_is_not_known_yet_is_not_zero(tmp_path: Path):
    news, _ = telemetry(tmp_path)

    assert math.isnan(samples(news)["dpo_train_loss"])
    assert math.isnan(samples(news)["dpo_train_initial_margin"])


def test_other_ranks_export_their_own_times_alone(tmp_path: Path):
    news, shown = telemetry(tmp_path, rank=8)
    news.begin(max_steps=10)
    steps(news, 1)
    with news.timed("data"):
        pass
    found = samples(news)

    assert found["dpo_train_step_seconds_count"] == 1
    assert "dpo_train_loss" not in found
    assert not (tmp_path / "metrics.jsonl").exists()
    assert shown.getvalue() == ""


def test_a_line_for_each_logged_step(tmp_path: Path):
    news, shown = telemetry(tmp_path)
    news.begin(max_steps=250)
    steps(news, 12)
    news.step(13, epoch=1.3, seconds=0.5, pairs=8, tokens=800, metrics=None)

    [line] = [text for text in shown.getvalue().splitlines() if text.startswith("step")]
    assert line.startswith("step 12/250 loss 0.6312 margin 0.13 acc 0.75 grad 2.5 lr 4.1e-07 ")
    assert "pairs/s eta " in line
    assert news.progress.step == 13


def test_an_accuracy_says_when_its_margin_means_nothing(tmp_path: Path):
    news, shown = telemetry(tmp_path)
    news.begin(max_steps=2)
    news.step(1, epoch=1.0, seconds=0.5, pairs=8, tokens=800, metrics={**METRICS, "rewards/margins": 0.001})
    news.evaluation(1, {**EVALUATION, "rewards/margins_se": 0.1})

    step, evaluation = [text for text in shown.getvalue().splitlines() if " acc " in text]
    assert "acc 0.75 (margin near 0) grad" in step
    assert evaluation.endswith("acc 0.75 (margin within noise)")


def test_a_metric_without_data_is_a_dash(tmp_path: Path):
    news, shown = telemetry(tmp_path)
    news.begin(max_steps=2)
    unknown = {**METRICS, "rewards/margins": math.nan}
    news.step(1, epoch=1.0, seconds=0.5, pairs=8, tokens=800, metrics=unknown)
    news.evaluation(1, unknown)

    assert "nan" not in shown.getvalue()
    assert shown.getvalue().count(" margin – acc 0.75") == 2


def test_a_resumed_run_has_each_step_once(tmp_path: Path):
    first, _ = telemetry(tmp_path)
    first.begin(max_steps=10)
    steps(first, 1, 2, 3, 4)
    first.evaluation(4, METRICS)
    steps(first, 5, 6)
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # cut off by SIGKILL

    second, shown = telemetry(tmp_path, attempt=2)
    second.begin(max_steps=10, resumed_step=4, checkpoint=CHECKPOINT)
    steps(second, 5, 6, 7, loss=0.5)
    second.evaluation(4, METRICS)
    second.close()

    lines = [(line["step"], line.get("loss")) for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert lines == [(1, 0.6312), (2, 0.6312), (3, 0.6312), (4, 0.6312), (4, None), (5, 0.5), (6, 0.5), (7, 0.5)]
    assert "resuming from step 4, saved by attempt 1" in shown.getvalue()
    assert samples(second)["dpo_train_resumed_step"] == 4
    assert second.progress.resumed_from_step == 4


def test_rank_0_reports_every_checkpoint_and_others_the_newest(tmp_path: Path):
    for step in (2, 4, 6):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    earlier = [CheckpointRecord(step=step, attempt=1, digest="cd" * 32) for step in (1, 2, 6)]
    newer = CHECKPOINT.model_copy(update={"attempt": 2})
    first, _ = telemetry(tmp_path, attempt=2)
    other, _ = telemetry(tmp_path, attempt=2, rank=1)
    for news in (first, other):
        news.begin(max_steps=10, resumed_step=2, recorded=earlier)
        news.checkpoint(newer, 0.1)

    # Step 1 has left the volume; step 6, which was refused, has not.
    assert [(r.step, r.attempt, r.digest[:2]) for r in first.progress.recorded] == [
        (2, 1, "cd"),
        (6, 1, "cd"),
        (4, 2, "ab"),
    ]
    assert json.loads(first._status())["recorded"][-1] == {"step": 4, "attempt": 2, "digest": "ab" * 32}
    assert (other.progress.recorded, other.progress.checkpoint) == ([], newer)


def test_a_slow_volume_is_reported_once(tmp_path: Path):
    news, shown = telemetry(tmp_path)
    news.begin(max_steps=10)
    news.checkpoint(CHECKPOINT, 4.9)
    assert "SlowCheckpoint" not in shown.getvalue()
    for _ in range(2):
        news.checkpoint(CHECKPOINT, 75.0)
    said = [line for line in shown.getvalue().splitlines() if "SlowCheckpoint" in line]
    assert said == [
        "Warning: SlowCheckpoint: a save took 75 s, 0 s after the one before. Raise checkpoint.everySteps, or use a faster volume."
    ]


@given(
    attempts=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=6),
)
def test_any_series_of_attempts_leaves_every_step_once(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[tuple[int, int]]
):
    path = tmp_path_factory.mktemp("m") / "metrics.jsonl"
    reached = 0
    for back, forward in attempts:
        resumed = max(0, reached - back)
        file = MetricsFile(path, resumed_step=resumed)
        for step in range(resumed + 1, resumed + forward + 1):
            file.write({"step": step, "loss": 1.0})
        file.close()
        reached = resumed + forward

    assert [line["step"] for line in read_metrics(path)] == list(range(1, reached + 1))


def test_the_server_answers_get_and_nothing_else(tmp_path: Path):
    news, _ = telemetry(tmp_path)
    port = news.serve()
    assert port
    news.activity("loading torch")

    def get(path: str) -> tuple[int, str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()

    assert get("/healthz") == (200, "ok\n")
    assert Progress.model_validate_json(get("/status")[1]).activity == "loading torch"
    assert "dpo_train_step 0.0" in get("/metrics")[1]
    for path, method, code in (("/other", "GET", 404), ("/status", "POST", 405), ("/status", "DELETE", 405)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method), timeout=5)
        assert caught.value.code == code
    news.close()
    with pytest.raises(urllib.error.URLError):
        get("/healthz")


def test_a_port_in_use_costs_the_metrics_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("DPO_METRICS_PORT", str(taken.getsockname()[1]))
        news, shown = telemetry(tmp_path)

        assert news.serve() is None
        assert "Warning: NoMetrics: no /metrics and /status on 127.0.0.1 port" in shown.getvalue()
        assert "Address already in use" in shown.getvalue()
        news.activity("goes on")


def test_one_server_for_each_pod(tmp_path: Path):
    assert telemetry(tmp_path, rank=1, local_rank=1)[0].serve() is None
    second_pod, _ = telemetry(tmp_path, rank=4, local_rank=0)
    assert second_pod.serve()
    second_pod.close()


def test_only_a_pod_listens_on_all_addresses(monkeypatch: pytest.MonkeyPatch):
    assert bind_address() == "127.0.0.1"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert bind_address() in ("::", "0.0.0.0")
    monkeypatch.setenv("DPO_BIND_ADDRESS", "127.0.0.2")
    assert bind_address() == "127.0.0.2"


def test_tensorboard_reads_the_curves_and_drops_repeated_steps(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first, _ = telemetry(tmp_path)
    first.begin(max_steps=10)
    steps(first, 1, 2, 3)
    first.evaluation(2, EVALUATION)
    first.close()
    [file] = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(file))
    events.Reload()

    assert [(e.step, round(e.value, 4)) for e in events.Scalars("train/loss")] == [
        (1, 0.6312),
        (2, 0.6312),
        (3, 0.6312),
    ]
    assert [e.step for e in events.Scalars("eval/rewards/margins")] == [2]
    assert set(events.Tags()["scalars"]) >= {
        "train/entropy",
        "eval/generation_tokens/policy",
        "eval/rewards/accuracies/le_64",
    }


def test_two_files_of_the_same_second_are_both_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dpo_trainer.telemetry.tensorboard.time.time", lambda: 1000.5)
    for step in (1, 2):
        file = TensorBoardFile(tmp_path, resumed_step=step - 1)
        file.write(Record(step, "train", {"loss": 0.5}, 1000.5))
        file.close(0)

    assert sorted(path.name.rpartition(".")[2] for path in tmp_path.iterdir()) == ["0", "1"]
    assert all(path.stat().st_size for path in tmp_path.iterdir())


def test_speed_and_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr("dpo_trainer.telemetry.telemetry.time.monotonic", lambda: now)
    news, _ = telemetry(tmp_path)
    news.begin(max_steps=10)
    for step in (1, 2, 3, 4):
        now += 2.0
        steps(news, step)

    assert news.progress.pairs_per_second == pytest.approx(4.0)
    assert news.progress.eta_seconds == pytest.approx(12.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m00s"), (190, "3m10s"), (7500, "2h05m"), (273600, "3d04h"), (-1, "0s")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str):
    assert duration(seconds) == text


def test_the_share_of_time_that_training_waits_for_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    news, _ = telemetry(tmp_path)
    now = 200.0
    news.begin(max_steps=10)  # what came before is no training
    for _ in range(2):
        now += 9.0
        with news.timed("checkpoint"):
            now += 1.0

    assert "dpo_checkpoint_blocked_ratio 0.1\n" in prometheus_text(news.metrics)
    news.close()


def test_a_run_that_rolls_back_has_each_step_once(tmp_path: Path):
    news, _ = telemetry(tmp_path)
    news.begin(max_steps=10)
    steps(news, 1, 2, 3, loss=1.0)
    news.rewind(1, 0.1)
    assert (news.progress.step, news.progress.epoch) == (1, 0.1)
    steps(news, 2, 3, loss=2.0)
    news.skipped_step()
    news.close()

    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 2.0),
    ]
    text = prometheus_text(news.metrics)
    assert "dpo_train_rollbacks_total 1.0\n" in text
    assert "dpo_train_skipped_steps_total 1.0\n" in text


def test_a_background_commit_is_no_heartbeat(tmp_path: Path):
    news, _ = telemetry(tmp_path)
    news.begin(max_steps=10)
    news.activity("evaluating")
    before = news.progress
    news.checkpoint(CHECKPOINT, 3.0)

    recorded = [CheckpointRecord(step=4, attempt=1, digest=CHECKPOINT.digest)]
    assert news.progress == before.model_copy(update={"checkpoint": CHECKPOINT, "recorded": recorded})
    news.close()


def test_a_warning_is_a_finding_until_another_explains_it(tmp_path: Path):
    news, _ = telemetry(tmp_path)
    news.warning("FirstStepLoss", "expected 0.69, found 0.9", once=True)
    news.warning("NotPacked", "slower")
    news.warning("NotPacked", "slower, still")
    assert [(f.code, f.severity, f.cause) for f in news.progress.findings] == [
        ("FirstStepLoss", "Warning", "expected 0.69, found 0.9"), ("NotPacked", "Info", "slower"),
    ]  # fmt: skip
    assert samples(news)["dpo_finding{code=FirstStepLoss}{severity=Warning}"] == 1
    news.diagnosed(1, [Finding(code="WrongReference", severity="Unhealthy", cause="Another model.")])
    assert [f.code for f in news.progress.findings] == ["WrongReference", "NotPacked"]
    assert "dpo_finding{code=FirstStepLoss}{severity=Warning}" not in samples(news)
    assert samples(news)["dpo_finding{code=WrongReference}{severity=Unhealthy}"] == 1


def test_new_findings_are_logged_once_in_their_sentence(tmp_path: Path):
    news, shown = telemetry(tmp_path)
    flat = Finding(code="FlatLoss", severity="Unhealthy", cause="Flat.", suggestion="Try more.")
    news.diagnosed(2, [flat], [flat])
    news.diagnosed(4, [flat], [])
    assert shown.getvalue().count("Unhealthy: FlatLoss: Flat. Try more.") == 1
