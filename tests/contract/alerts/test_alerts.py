"""Each alert fires on a recorded broken run and no other does; on healthy ones none. promtool tests the rules that the chart ships."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from dpo_operator.api.diagnosis import Finding
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.planning.findings import as_status
from tests.contract.alerts.replay import (
    NAME,
    RECORDED,
    TENANT,
    TICK,
    Operator,
    Series,
    fires,
    length,
    of_operator,
    of_pod,
    promtool,
    recorded,
    rules,
    says,
)

pytestmark = pytest.mark.contract

HOUR = 3600 // TICK
TRAINS = {"state": "Training", "phase": "train", "workers": {"desired": 2, "started": 2}}
ALERTS = {rule["alert"]: rule for group in rules()["groups"] for rule in group["rules"] if "alert" in rule}


def at(tick: int) -> str:
    return datetime.fromtimestamp(tick * TICK, UTC).isoformat()


def status(**fields: Any) -> DPOJobStatus:
    return DPOJobStatus.model_validate({"startTime": at(0), **TRAINS, **fields})


def restarts(ticks: list[int], reason: str) -> dict[int, DPOJobStatus]:
    """Statuses of a job that restarts at these ticks."""
    history: list[dict[str, Any]] = []
    found = {0: status()}
    for number, tick in enumerate(ticks, 1):
        history.append({"time": at(tick), "phase": "train", "attempt": number, "reason": reason, "counting": "Counted"})
        found[tick] = status(state="Restarting", restartHistory=history)
        found[tick + 4] = status(restartHistory=history)
    return found


def run(name: str) -> Series:
    """A recorded run that trains, completes, and stays for another quarter of an hour."""
    pod = of_pod(recorded(name))
    ends = length(pod)
    complete = status(state="Complete", completionTime=at(ends))
    return pod | of_operator({0: status(), ends: complete}, ends + HOUR // 4)


def goes_on(name: str, ticks: int | None = None) -> Series:
    """A recording, or its beginning, that ends while the run is broken."""
    pod = {key: values[:ticks] for key, values in of_pod(recorded(name)).items()}
    return pod | of_operator({0: status()}, length(pod))


def slowed(name: str, times: int) -> Series:
    """A recorded run, and then the same steps again, each of which takes so many times as long."""
    run = recorded(name)
    parts = {}
    for part in ("sum", "count"):
        values = run[f"dpo_train_step_seconds_{part}{{}}"]
        last, factor = values[-1] or 0, times if part == "sum" else 1
        slow = [last + factor * (value or 0) for value in values for _ in range(times)]
        parts[f"dpo_train_step_seconds_{part}{{}}"] = [*values, *slow]
    pod = of_pod({**parts, "dpo_train_step{}": [1.0] * length(parts)})
    return pod | of_operator({0: status()}, length(pod))


def with_gpu(name: str) -> Series:
    """What a pod with a GPU exports in addition; the recordings were made on processors."""
    return of_pod({'dpo_train_gpu_memory_peak_bytes{local_rank="0"}': [2.0**36] * length(recorded(name))})


def with_nan(name: str) -> Series:
    """What the pod of a recording exports when three of its steps are NaN."""
    ticks = length(recorded(name))
    return of_pod({"dpo_train_nonfinite_steps_total{}": [float(min(3, max(0, tick - 12))) for tick in range(ticks)]})


def alone(timeline: dict[int, DPOJobStatus], ticks: int = HOUR // 2, **own: Any) -> Series:
    """A job whose pods are well as far as anybody knows, and the operator."""
    pod = of_pod({"dpo_train_step{}": [5.0] * ticks})
    return pod | of_operator(timeline, ticks, Operator(**own))


def found(code: str, severity: str = "Unhealthy", since: int = 40, ends: int = 80) -> Series:
    """A job with a finding from a tick on, which completes with it."""
    findings = [{"code": code, "severity": severity, "phase": "train", "step": 10, "message": f"What {code} says."}]
    complete = status(findings=findings, state="Complete", completionTime=at(ends))
    return alone({0: status(), since: status(findings=findings), max(ends, since): complete}, max(ends, 0) + 20)


def diagnosed(name: str) -> Series:
    """A run of the quickstart with what its own diagnosis.json says, as the operator shows it."""
    document = json.loads((RECORDED / f"{name}.diagnosis.json").read_text())
    findings = [as_status(Finding.model_validate(each), "train") for each in document["findings"]]
    held = {"findings": [finding.model_dump(by_alias=True) for finding in findings]}
    return alone({0: status(), 40: status(**held), 80: status(state="Complete", completionTime=at(80), **held)}, 100)


VOLUME = {"claimName": "w", "claimUid": "u", "folder": "f", "capacityBytes": 100 * 2**30}
ENDED = {"completionTime": at(10), "state": "Failed"}

WELL: dict[str, Callable[[], Series]] = {
    "dpo": lambda: run("healthy"),
    "LoRA": lambda: run("healthy-lora"),
    "no reference": lambda: run("healthy-orpo"),
    "diagnosed as well": lambda: diagnosed("healthy"),
    "two restarts": lambda: alone(restarts([20, 60], "Evicted")),
    "a short wait": lambda: alone({0: status(state="Pending"), 60: status()}),
    "room on the volume": lambda: alone({0: status(volume={**VOLUME, "freeBytes": 30 * 2**30})}),
    "a full volume of a job that ended": lambda: alone({0: status(volume={**VOLUME, "freeBytes": 0}, **ENDED)}),
    "old restarts for a new Prometheus": lambda: alone(
        {0: status(startTime="1969-12-30T00:00:00Z", restartHistory=restarts([1, 2, 3], "Hang")[7].restart_history)}
    ),
    "a finding worth knowing": lambda: found("ReferenceDrift", "Info"),
    "a warning that has no alert": lambda: found("NoisyLabels", "Warning"),
    "a finding of a job that ended long ago": lambda: found("Gibberish", since=10, ends=-HOUR - 10),
    "saturated long ago": lambda: found("Saturated", "Info", since=10, ends=-HOUR - 10),
    "loading": lambda: of_operator({0: status(state="Pending"), 60: status()}, 70),
}

ILL: dict[str, tuple[list[str], Callable[[], Series]]] = {
    "flat": (["DPOJobNotLearning"], lambda: run("flat")),
    "a wrong reference": (["DPOJobWrongReference"], lambda: run("wrong-reference")),
    "learning rate 1e-2": (["DPOJobGibberish"], lambda: diagnosed("gibberish")),
    "learning rate 5e-7": (["DPOJobNotLearning"], lambda: diagnosed("flat")),
    "found: wrong reference": (["DPOJobWrongReference"], lambda: found("WrongReference")),
    "found: flat": (["DPOJobNotLearning"], lambda: found("FlatLoss")),
    "found: gibberish": (["DPOJobGibberish"], lambda: found("Gibberish")),
    "found: displacement": (["DPOJobLikelihoodDisplacement"], lambda: found("LikelihoodDisplacement", "Warning")),
    "found: verbosity": (["DPOJobVerbosity"], lambda: found("Verbosity", "Warning")),
    "found: overfitting": (["DPOJobOverfitting"], lambda: found("Overfitting", "Warning")),
    "found: saturated": (["DPOJobSaturated"], lambda: found("Saturated", "Info")),
    "found: swapped": (["DPOJobUnhealthy"], lambda: found("SwappedLabels")),
    "NaN": (["DPOJobNonFinite"], lambda: run("healthy") | with_nan("healthy")),
    "a rank that is stopped": (["DPOJobHang"], lambda: goes_on("hang")),
    "restarted because of a hang": (["DPOJobHang"], lambda: alone(restarts([40], "Hang"))),
    "a rank that is slowed": (["DPOJobStraggler"], lambda: goes_on("straggler")),
    "saves that are frozen": (["DPOJobCheckpointOverdue"], lambda: goes_on("overdue", 29)),
    "three times slower": (["DPOJobSlowStep"], lambda: slowed("healthy", 3)),
    "waits for saves": (["DPOJobGPUIdle"], lambda: goes_on("idle") | with_gpu("idle")),
    "saves that are frozen until training waits": (
        ["DPOJobCheckpointOverdue", "DPOJobHang"],
        lambda: goes_on("overdue"),
    ),
    "saves that fail": (["DPOJobCheckpointFailing"], lambda: alone(restarts([40], "VolumeError"))),
    "restarts": (["DPOJobRestartLoop"], lambda: alone(restarts([20, 50, 80], "Killed"))),
    "no metrics": (["DPOJobNoMetrics"], lambda: of_operator({0: status()}, HOUR // 4)),
    "no node": (["DPOJobPending"], lambda: of_operator({0: status(state="Pending")}, HOUR * 3 // 4)),
    "little room": (["DPOJobVolumeNearlyFull"], lambda: alone({0: status(volume={**VOLUME, "freeBytes": 4 * 2**30})})),
    "no operator": (["DPOOperatorNoLeader"], lambda: of_pod(recorded("healthy"))),
    "a standby alone": (["DPOOperatorNoLeader"], lambda: alone({0: status()}, leader=0)),
    "a silent watch": (["DPOOperatorBlind"], lambda: alone({0: status()}, watch_age=300)),
    "no answers": (["DPOOperatorBlind"], lambda: alone({0: status()}, answers=(0, 0, 200))),
    "a namespace without rights": (["DPOOperatorBlind"], lambda: alone({0: status()}, unreadable=1)),
    "a busy operator": (["DPOOperatorQueueStarving"], lambda: alone({0: status()}, waits=90)),
}


JOB = {"namespace": TENANT, "dpojob": NAME}
# Minute, labels, summary and description of a broken run's alert.
SAID: dict[str, tuple[int, dict[str, str], str, str]] = {
    "flat": (
        11,
        {**JOB, "severity": "warning"},
        "DPOJob team-a/helpful learns nothing",
        "After a fifth of the steps the reward margin is 0.000405 nats, and no log-ratio to the reference has moved by 0.001 a token. An "
        "accuracy above 0.5 says nothing here: it counts signs, however small.",
    ),
    "found: gibberish": (
        12,
        {**JOB, "severity": "critical", "code": "Gibberish"},
        "DPOJob team-a/helpful writes broken text",
        "Gibberish (Unhealthy): What Gibberish says. A low loss does not contradict this.",
    ),
    "restarted because of a hang": (
        14,
        {**JOB, "severity": "critical"},
        "DPOJob team-a/helpful hangs, or was restarted because it hung",
        "Restarts because of a hang in the last 15 minutes: 1. The operator restarts all ranks after "
        "failurePolicy.hangTimeoutSeconds.",
    ),
    "no node": (
        31,
        {**JOB, "severity": "warning"},
        "DPOJob team-a/helpful waits and does not start",
        "The job was accepted 31m 0s ago and waits for its pods; the reason is in its condition Running.",
    ),
    "little room": (
        14,
        {**JOB, "severity": "critical"},
        "The volume of DPOJob team-a/helpful is nearly full",
        "4% of it is free. A checkpoint that does not fit fails.",
    ),
    "no answers": (
        14,
        {"severity": "critical", "sign": "requests"},
        "The operator does not see what happens in the cluster",
        "66.67% of its requests to the API server get no answer.",
    ),
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """promtool's, by case."""
    every = {name: ([], made) for name, made in WELL.items()} | ILL
    cases = {}
    for name, (alerts, made) in every.items():
        series = made()
        cases[name] = series, fires(series, alerts) | (says(alerts[0], *SAID[name]) if name in SAID else {})
    return promtool(tmp_path_factory.mktemp("promtool"), cases)


@pytest.mark.parametrize("name", WELL)
def test_no_alert_fires_on_what_is_well(name: str, verdicts: dict[str, str]) -> None:
    assert verdicts[name] == ""


@pytest.mark.parametrize("name", ILL)
def test_exactly_its_alert_fires_on_a_broken_run(name: str, verdicts: dict[str, str]) -> None:
    assert verdicts[name] == ""


def test_each_alert_has_its_ill_run() -> None:
    assert {alert for alerts, _ in ILL.values() for alert in alerts} == set(ALERTS)
