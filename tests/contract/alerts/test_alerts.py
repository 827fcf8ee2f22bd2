"""Each alert fires on a recorded ill run and no other does; on healthy ones none. promtool tests the rules that the chart ships."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.status import DPOJobStatus
from tests.contract.alerts.replay import (
    TICK,
    Operator,
    Series,
    fired,
    length,
    of_operator,
    of_pod,
    recorded,
    rules,
)

pytestmark = pytest.mark.contract

HOUR = 3600 // TICK
TRAINS = {"state": "Training", "phase": "train", "workers": {"desired": 2, "started": 2}}
ALERTS = {rule["alert"]: rule for group in rules()["groups"] for rule in group["rules"] if "alert" in rule}


def at(tick: int) -> str:
    minutes, seconds = divmod(tick * TICK, 60)
    return f"1970-01-01T{minutes // 60:02}:{minutes % 60:02}:{seconds:02}Z"


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


def run(name: str, **fields: Any) -> Series:
    """A recorded run that trains, completes, and stays for another hour."""
    pod = of_pod(recorded(name))
    ends = length(pod)
    complete = status(state="Complete", completionTime=at(ends))
    return pod | of_operator({0: status(**fields), ends: complete}, ends + HOUR)


def goes_on(name: str, **fields: Any) -> Series:
    """A recording that ends while the run is ill."""
    pod = of_pod(recorded(name))
    return pod | of_operator({0: status(**fields)}, length(pod))


def alone(timeline: dict[int, DPOJobStatus], ticks: int = HOUR, **own: Any) -> Series:
    """A job whose pods are well as far as anybody knows, and the operator."""
    pod = of_pod({"dpo_train_step{}": [5.0] * ticks})
    return pod | of_operator(timeline, ticks, Operator(**own))


VOLUME = {"claimName": "w", "claimUid": "u", "folder": "f", "capacityBytes": 100 * 2**30}
ENDED = {"completionTime": at(10), "state": "Failed"}

WELL: dict[str, Callable[[], Series]] = {
    "dpo": lambda: run("healthy"),
    "LoRA": lambda: run("healthy-lora"),
    "no reference": lambda: run("healthy-orpo"),
    "two restarts": lambda: alone(restarts([20, 60], "Evicted")),
    "a short wait": lambda: alone({0: status(state="Pending"), 60: status()}),
    "room on the volume": lambda: alone({0: status(volume={**VOLUME, "freeBytes": 30 * 2**30})}),
    "a full volume of a job that ended": lambda: alone({0: status(volume={**VOLUME, "freeBytes": 0}, **ENDED)}),
    "old restarts for a new Prometheus": lambda: alone(
        {0: status(startTime="1969-12-30T00:00:00Z", restartHistory=restarts([1, 2, 3], "Hang")[7].restart_history)}
    ),
    "loading": lambda: of_operator({0: status(state="Pending"), 60: status()}, 70),
}

ILL: dict[str, tuple[list[str], Callable[[], Series]]] = {
    "flat": (["DPOJobNotLearning"], lambda: run("flat")),
    "NaN": (["DPOJobNonFinite"], lambda: run("nonfinite")),
    "a rank that is stopped": (["DPOJobHang"], lambda: goes_on("hang")),
    "restarted because of a hang": (["DPOJobHang"], lambda: alone(restarts([40], "Hang"))),
    "a rank that is slowed": (["DPOJobStraggler"], lambda: goes_on("straggler")),
    "saves that are frozen": (["DPOJobCheckpointOverdue"], lambda: goes_on("overdue")),
    "saves that fail": (["DPOJobCheckpointFailing"], lambda: alone(restarts([40], "VolumeError"))),
    "restarts": (["DPOJobRestartLoop"], lambda: alone(restarts([20, 60, 100], "Killed"))),
    "no metrics": (["DPOJobNoMetrics"], lambda: of_operator({0: status()}, HOUR)),
    "no node": (["DPOJobPending"], lambda: of_operator({0: status(state="Pending")}, HOUR)),
    "little room": (["DPOJobVolumeNearlyFull"], lambda: alone({0: status(volume={**VOLUME, "freeBytes": 4 * 2**30})})),
    "no operator": (["DPOOperatorNoLeader"], lambda: of_pod(recorded("healthy"))),
    "a standby alone": (["DPOOperatorNoLeader"], lambda: alone({0: status()}, leader=0)),
    "a silent watch": (["DPOOperatorBlind"], lambda: alone({0: status()}, watch_age=300)),
    "no answers": (["DPOOperatorBlind"], lambda: alone({0: status()}, answers=(0, 0, 200))),
    "a namespace without rights": (["DPOOperatorBlind"], lambda: alone({0: status()}, unreadable=1)),
    "a busy operator": (["DPOOperatorQueueStarving"], lambda: alone({0: status()}, waits=90)),
}


@pytest.mark.parametrize("name", WELL)
def test_no_alert_fires_on_what_is_well(name: str, tmp_path: Path) -> None:
    assert fired(tmp_path, WELL[name](), []) == ""


@pytest.mark.parametrize("name", ILL)
def test_exactly_its_alert_fires_on_what_is_ill(name: str, tmp_path: Path) -> None:
    alerts, made = ILL[name]
    assert fired(tmp_path, made(), alerts) == ""


def test_each_alert_has_its_ill_run() -> None:
    assert {alert for alerts, _ in ILL.values() for alert in alerts} == set(ALERTS)
