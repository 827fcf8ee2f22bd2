"""Faults of time, of watches that say nothing, and of the storage: rows 3, 9 and 41 of the fault matrix."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apiserver.faults import NAMESPACE, Stage, behind_a_proxy, stage
from tests.apiserver.hands import wait_until
from tests.apiserver.scripted import kubelets
from tests.cluster.rig import packages

# Shifts the wall clock that Python reads. The monotonic clock stays, and so does time(2), by which certificates are judged.
SHIFTED_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, at);
    const char *shift = getenv("SHIFT_SECONDS");
    if (!failed && shift && clock == CLOCK_REALTIME) at->tv_sec += atol(shift);
    return failed;
}
"""


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage("storage", tmp_path_factory.mktemp("storage")) as made:
        yield made


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that shifts the clock of the process that it's loaded into."""
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(SHIFTED_CLOCK)
    library = folder / "clock.so"
    packages.ensure(packages.COMPILER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, folder / "clock.c", "-ldl"], check=True)
    return library


@pytest.mark.campaign
@pytest.mark.fault(41)
@pytest.mark.parametrize("hours", [-1, 1])
def test_clock_that_is_an_hour_wrong_changes_no_time_out(theatre: Stage, shifted: Path, hours: int) -> None:
    settings = {"LD_PRELOAD": str(shifted), "SHIFT_SECONDS": str(hours * 3600)}
    name = f"clock-{'late' if hours < 0 else 'early'}"
    read = subprocess.run(["date", "+%s"], env=os.environ | settings, capture_output=True, text=True, check=True)
    assert abs(int(read.stdout) - time.time() - hours * 3600) < 5
    with behind_a_proxy(theatre, name, **settings), kubelets(theatre.plane, NAMESPACE) as playing:
        theatre.life(name, playing)
        theatre.ends_calmly(name)
        assert not playing.violations


@pytest.mark.campaign
@pytest.mark.fault(41)
@pytest.mark.parametrize("hours", [-1, 1])
def test_a_successor_whose_clock_is_an_hour_wrong_ends_no_job_early(theatre: Stage, shifted: Path, hours: int) -> None:
    """The deadline and the time to live are half an hour, and began when another operator was there."""
    name = f"successor-{'late' if hours < 0 else 'early'}"
    with behind_a_proxy(theatre, name) as (_, operator), kubelets(theatre.plane, NAMESPACE) as playing:
        theatre.life(name, playing, activeDeadlineSeconds=1800, ttlSecondsAfterFinished=1800)
        theatre.reaches(name, "train", 1)
        operator.kill()
        operator.settings |= {"LD_PRELOAD": str(shifted), "SHIFT_SECONDS": str(hours * 3600)}
        operator.start()
        theatre.ends_calmly(name)
        time.sleep(3 * operator.resync_seconds)
        status = theatre.hands().status(name)
        assert status["state"] == "Complete"
        assert status["startTime"] < status["completionTime"]
        assert not playing.violations


@pytest.mark.campaign
@pytest.mark.fault(9)
def test_storage_that_stands_still_loses_nothing(theatre: Stage) -> None:
    with behind_a_proxy(theatre, "still") as (_, operator), kubelets(theatre.plane, NAMESPACE) as playing:
        stand_still(theatre, "still", playing, 8)
        assert operator.healthy


@pytest.mark.campaign
@pytest.mark.fault(9)
def test_storage_that_stands_still_for_a_minute(theatre: Stage) -> None:
    with behind_a_proxy(theatre, "minute"), kubelets(theatre.plane, NAMESPACE) as playing:
        stand_still(theatre, "minute", playing, 60)


def stand_still(theatre: Stage, name: str, playing: object, seconds: float) -> None:
    theatre.life(name, playing)  # type: ignore[arg-type]
    theatre.reaches(name, "prepare", 1)
    etcd = theatre.process("etcd")
    etcd.signal(signal.SIGSTOP)
    time.sleep(seconds)
    etcd.signal(signal.SIGCONT)
    theatre.ends_calmly(name, 120)


@pytest.mark.campaign
@pytest.mark.fault(9)
def test_old_snapshot_of_the_storage_invents_no_state(theatre: Stage) -> None:
    with behind_a_proxy(theatre, "snapshot") as (_, operator), kubelets(theatre.plane, NAMESPACE) as playing:
        theatre.life("snapshot", playing)
        theatre.reaches("snapshot", "train", 1)
        data, copy = theatre.plane.layout.root / "etcd", theatre.folder / "etcd-copy"
        playing.paused = True
        theatre.kill("kube-apiserver", "etcd")
        shutil.copytree(data, copy)
        theatre.plane.start_etcd()
        theatre.start_apiserver()
        playing.paused = False
        theatre.ends_calmly("snapshot", 120)
        # All of that was a dream: the job trains its first attempt again. Kubernetes' own controllers would make pods for
        # Jobs that are no more, so an administrator who restores a snapshot starts them anew.
        playing.paused = True
        theatre.kill("kube-controller-manager", "kube-apiserver", "etcd")
        shutil.rmtree(data)
        shutil.copytree(copy, data)
        theatre.plane.start_etcd()
        theatre.start_apiserver()
        theatre.plane.start_controller_manager()
        time.sleep(3)
        status = theatre.hands().status("snapshot")
        assert (status["attempts"]["train"], status["attempts"]["export"]) in ((1, 0), (2, 0))
        playing.paused = False
        # Versions go back with the storage, and watches wait for ones that do not come: the probe sees to it.
        wait_until("healing or a failing probe", lambda: healed(theatre) or not operator.healthy, 120)
        if not healed(theatre):
            operator.kill()
            operator.start()
        theatre.ends_calmly("snapshot", 120)
        assert not playing.violations


def healed(theatre: Stage) -> bool:
    return theatre.hands().status("snapshot").get("state") == "Complete"


@pytest.mark.campaign
@pytest.mark.fault(3)
def test_silent_watches_fail_the_probe_while_the_work_goes_on(theatre: Stage) -> None:
    with behind_a_proxy(theatre, "silent") as (proxy, operator), kubelets(theatre.plane, NAMESPACE) as playing:
        proxy.hold("dpojobs", "jobs", "pods")
        theatre.life("silent", playing)
        # By the periodic pass alone.
        theatre.ends_calmly("silent", 90)
        wait_until("failing probe", lambda: not operator.healthy, 75)
        assert "has not delivered" in operator.log.read_text()
        assert not playing.violations


@pytest.mark.campaign
@pytest.mark.fault(3)
def test_silent_watches_are_opened_anew(theatre: Stage) -> None:
    with behind_a_proxy(theatre, "anew") as (proxy, operator), kubelets(theatre.plane, NAMESPACE) as playing:
        proxy.hold("dpojobs", "jobs", "pods")
        theatre.hands().apply("touch", training={"globalBatchSize": 2, "offload": "nvme"})
        time.sleep(1)
        proxy.release()
        began, opened = time.monotonic(), len(proxy.calls)

        def again() -> bool:
            new = {c.resource for c in proxy.calls[opened:] if c.watch and c.status == 200}
            return new >= {"dpojobs", "jobs", "pods"}

        wait_until("watches", again, 90)
        assert time.monotonic() - began < 75 + 10
        wait_until("passing probe", lambda: operator.healthy, 30)
        theatre.life("anew", playing)
        theatre.ends_calmly("anew")
