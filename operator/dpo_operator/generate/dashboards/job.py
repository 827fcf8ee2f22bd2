"""The dashboard of one DPOJob: does it run, does it learn, is it fast."""

from dpo_operator.generate.dashboards import learning, legs, rounds
from dpo_operator.generate.dashboards.panels import (
    Annotation,
    Json,
    Panel,
    Query,
    Row,
    Steps,
    build_dashboard,
    operator_variable,
    query_variable,
)
from dpo_operator.generate.dashboards.queries import JOB, OF_JOB, OPERATOR, newest, quantile, rate

UID = "dpo-operator-job"


def dashboard() -> Json:
    """The JSON model."""
    return build_dashboard(
        uid=UID,
        title="DPO / Job",
        description="Progress, learning and speed of one DPOJob.",
        variables=[
            operator_variable(),
            query_variable("namespace", "Namespace", f"label_values(dpojob_info{{{OPERATOR}}}, namespace)"),
            query_variable(
                "dpojob", "DPOJob", f'label_values(dpojob_info{{namespace="$namespace",{OPERATOR}}}, dpojob)'
            ),
        ],
        annotations=_annotations(),
        rows=[
            _overview(),
            learning.preference(),
            learning.drift(),
            learning.length(),
            learning.method(),
            rounds.row(),
            legs.row(),
            _optimizer(),
            _speed(),
        ],
    )


def _annotations() -> list[Annotation]:
    restarts = f"sum(dpojob_restarts_total{{{OF_JOB}}})"
    findings = f"max by (code) (dpojob_finding{{{OF_JOB}}})"
    return [
        Annotation(
            "Alerts",
            f'max by (alertname, severity) (ALERTS{{{JOB},alertstate="firing"}})',
            "{{alertname}} ({{severity}})",
            "orange",
        ),
        # Only where it is new: a sentence changes with its figures.
        Annotation(
            "Findings",
            f"max by (code, severity, message) (dpojob_finding_info{{{OF_JOB}}}) "
            f"and on (code) ({findings} unless {findings.replace('}', '} offset 1m')})",
            "{{code}} ({{severity}})",
            "yellow",
            text="{{message}}",
        ),
        # A reason's first restart makes a new series, in which increase() sees nothing; so the sums are compared.
        Annotation("Restarts", f"{restarts} > ({restarts.replace('}', '} offset 1m')} or vector(0))", "Restart", "red"),
        Annotation(
            "Checkpoints",
            f"changes(dpo_checkpoint_last_step{{{JOB}}}[$__interval]) > 0",
            "Checkpoint committed",
            "green",
            shown=False,
        ),
    ]


def _stat(
    title: str,
    description: str,
    query: Query,
    *,
    unit: str = "short",
    decimals: int | None = None,
    steps: Steps = ((None, "blue"),),
    show_name: bool = False,
) -> Panel:
    """A small panel with the newest value."""
    return Panel(title, description, (query,), unit, "stat", 3, 4, decimals=decimals, steps=steps, show_name=show_name)


def _findings() -> Panel:
    return Panel(
        "Findings",
        "What the job's figures and data say, and what to change. `kubectl dpo why` and `kubectl describe dpojob` say more.",
        (
            Query(
                f"max by (severity, code, message) (dpojob_finding_info{{{OF_JOB}}})"
                ' or label_replace(vector(0), "message", "None.", "", "")'
            ),
        ),
        kind="table",
        width=24,
        height=5,
        columns={"severity": "Severity", "code": "Finding", "message": "What it says"},
    )


def _overview() -> Row:
    left = f"{newest('dpo_train_max_steps')} - {newest('dpo_train_step')}"
    speed = f"max(rate(dpo_train_step_seconds_count{{{JOB}}}[$__rate_interval]))"
    return Row(
        "Overview",
        (
            _stat(
                "State",
                "What the operator says the job is doing, as in `kubectl get dpojob`.",
                Query(f"max by (state) (dpojob_status_state{{{OF_JOB}}}) == 1", "{{state}}"),
                show_name=True,
            ),
            Panel(
                "Progress",
                "Finished optimizer steps of all, from the job's status.",
                (Query(newest("dpojob_progress_ratio")),),
                unit="percentunit",
                kind="gauge",
                width=3,
                height=4,
                minimum=0,
                maximum=1,
            ),
            _stat(
                "Time left",
                "Remaining steps at the speed of the last minutes, without evaluations and checkpoints.",
                Query(f"({left}) / {speed}"),
                unit="s",
            ),
            _stat(
                "Reward margin",
                "Newest mean reward of chosen minus rejected answers. It should rise, from 0 where the policy starts as its reference; below "
                "0.003 (orange) next to nothing has been learned.",
                Query(newest("dpo_train_reward_margin")),
                decimals=3,
                steps=((None, "red"), (0.0, "orange"), (0.003, "green")),
            ),
            _stat(
                "Accuracy",
                "Share of the newest batch's pairs whose chosen answer has the higher reward; 0.5 is chance. It counts signs: where the reward margin is near 0 it says nothing.",
                Query(newest("dpo_train_reward_accuracy_ratio")),
                unit="percentunit",
                steps=((None, "text"),),
            ),
            _stat(
                "Restarts",
                "Restarts of all ranks since the operator started; reasons are in the job's events.",
                Query(f"sum(dpojob_restarts_total{{{OF_JOB}}}) or vector(0)"),
                decimals=0,
                steps=((None, "green"), (1, "yellow"), (3, "red")),
            ),
            _stat(
                "Checkpoint age",
                "Time since the newest committed checkpoint: what a failure now would cost.",
                Query(f"time() - max(dpo_checkpoint_last_success_timestamp_seconds{{{JOB}}} > 0)"),
                unit="s",
            ),
            Panel(
                "Workers",
                "Running pods, and pods that the current phase wants.",
                (Query(newest("dpojob_workers", by="state"), "{{state}}"),),
                kind="stat",
                width=3,
                height=4,
                decimals=0,
            ),
            _findings(),
        ),
    )


def _optimizer() -> Row:
    return Row(
        "Optimization",
        (
            Panel(
                "Gradient norm",
                "Global norm before clipping to training.maxGradNorm. Spikes that grow announce divergence.",
                (Query(newest("dpo_train_grad_norm"), "gradient"),),
                decimals=3,
            ),
            Panel(
                "Learning rate",
                "Rises during the warm-up, then follows training.scheduler.",
                (Query(newest("dpo_train_learning_rate"), "learning rate"),),
                unit="sci",
            ),
            Panel(
                "Steps that went wrong",
                "Steps whose loss or gradient was NaN or infinite, and checkpoints that could not be committed, since this "
                "attempt began.",
                (
                    Query(f"sum(dpo_train_nonfinite_steps_total{{{JOB}}})", "non-finite steps"),
                    Query(f"sum(dpo_checkpoint_failures_total{{{JOB}}})", "failed checkpoints"),
                ),
                decimals=0,
                minimum=0,
                colors={"non-finite steps": "red", "failed checkpoints": "orange"},
            ),
        ),
    )


def _speed() -> Row:
    return Row("Speed", (*_step_panels(), *_resource_panels()))


def _step_panels() -> tuple[Panel, ...]:
    """How fast training is, and what it waits for."""
    return (
        Panel(
            "Time of a step",
            "Median and 95th percentile over all pods. A growing gap between them is a straggler or a slow volume.",
            (
                Query(quantile(0.5, "dpo_train_step_seconds"), "p50"),
                Query(quantile(0.95, "dpo_train_step_seconds"), "p95"),
            ),
            unit="s",
            minimum=0,
        ),
        Panel(
            "Slowest rank",
            "How many times as long the slowest rank takes for the same work as the median of the others; all wait for "
            "it. From 1.5 on an event names it and its node. 0: nothing to compare yet.",
            (Query(f"{newest('dpo_train_rank_slowdown_ratio', by='rank')} or vector(0)", "rank {{rank}}"),),
            minimum=0,
            steps=((None, "blue"), (1.5, "red")),
            line=True,
        ),
        Panel(
            "Throughput",
            "Pairs trained on each second, all ranks together.",
            (Query(rate("dpo_train_pairs_total"), "pairs"),),
            unit="short",
            minimum=0,
        ),
        Panel(
            "Tokens",
            "Tokens of prompts and answers trained on each second, all ranks together.",
            (Query(rate("dpo_train_tokens_total"), "tokens"),),
            unit="short",
            minimum=0,
        ),
        Panel(
            "Use of the GPUs",
            "Model FLOPs of the newest step as a share of what all GPUs could do meanwhile (0 on CPUs). Low: larger "
            "training.microBatchTokens, fewer nodes, or a faster network.",
            (Query(f"({newest('dpo_train_model_flops_utilization_ratio')} >= 0) or vector(0)", "MFU"),),
            unit="percentunit",
            minimum=0,
        ),
        Panel(
            "Where the time goes",
            "Share of the pods' time in each part of the loop. Much `data` is waiting for input; much `checkpoint` asks "
            "for a larger checkpoint.everySteps.",
            (Query(f"avg by (phase) (rate(dpo_train_phase_seconds_total{{{JOB}}}[$__rate_interval]))", "{{phase}}"),),
            unit="percentunit",
            minimum=0,
            stack=True,
        ),
    )


def _resource_panels() -> tuple[Panel, ...]:
    """Checkpoints, free space and memory."""
    return (
        Panel(
            "Time of a checkpoint",
            "Mean time from the start of a save to its commit. With checkpoint.async, training continues meanwhile.",
            (Query(f"sum(dpo_checkpoint_seconds_sum{{{JOB}}}) / sum(dpo_checkpoint_seconds_count{{{JOB}}})", "mean"),),
            unit="s",
            minimum=0,
        ),
        Panel(
            "Free space on the volume",
            "What may still be written to the claim's file system. A save that does not fit fails; an event warns before.",
            (
                Query(newest("dpojob_volume_free_bytes"), "free"),
                Query(newest("dpojob_volume_capacity_bytes"), "size"),
            ),
            unit="bytes",
            minimum=0,
        ),
        Panel(
            "Memory",
            "Memory of each pod's first process, and the most GPU memory that tensors took on any GPU (0 on CPUs).",
            (
                Query(newest("process_resident_memory_bytes", by="pod"), "{{pod}}"),
                Query(f"{newest('dpo_train_gpu_memory_peak_bytes')} or vector(0)", "GPU, peak"),
            ),
            unit="bytes",
            minimum=0,
        ),
    )
