"""Whatever happens, and wherever the operator dies, there is one gang at a time, every restart is counted once, and
the job ends."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_operator.api.status import State
from dpo_operator.planning.actions import Create
from tests.unit.planning.world import LIES, World, a_world

pytestmark = pytest.mark.unit

STEPS = {
    # Number of writes after which the operator dies, 99 for never.
    **{f"operator dies after {n} writes": (lambda w, n=n: w.reconcile(n)) for n in range(4)},
    **{f"operator sees {lie}": (lambda w, lie=lie: w.reconcile(lie=lie)) for lie in LIES},
    "operator": lambda w: w.reconcile(),
    "controllers": lambda w: w.run_controllers(),
    "kubelets": lambda w: w.run_kubelets(),
    "work": lambda w: w.work(),
    "kill first": lambda w: w.kill(0, 137),
    "kill second": lambda w: w.kill(1, 137),
    "crash": lambda w: w.kill(1, 70),
    "lose peer": lambda w: w.kill(0, 75),
    "evict": lambda w: w.evict(1),
    "delete jobs": lambda w: w.delete_jobs(),
    "suspend jobs": lambda w: w.suspend_jobs(),
    "resume jobs": lambda w: w.resume_jobs(),
    "suspend": lambda w: w.suspend(True),
    "resume": lambda w: w.suspend(False),
}
FAULTLESS = ("operator", "controllers", "kubelets", "work")


# Progress is common and faults are rare, so that histories get far.
histories = st.lists(st.sampled_from([*FAULTLESS * 5, *STEPS]), max_size=120)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(histories)
def test_every_history_ends_well(history):
    world = a_world()
    for step in history:
        STEPS[step](world)
    world.settle()
    # A gang that is broken again and again before its first step is given up on, and nothing else is.
    assert world.status.state is State.COMPLETE or "restarts did not get beyond step" in world.status.message


def run(world: World, *steps: str, times: int = 1) -> None:
    for _ in range(times):
        for step in steps:
            STEPS[step](world)


def test_undisturbed_job_completes_without_a_restart():
    world = a_world()
    world.settle()
    assert world.status.state is State.COMPLETE
    assert (world.status.restarts, world.steps) == (0, 3)
    assert {job.name: job.complete for job in world.jobs.values()} == {
        "pairs-prepare-1": True,
        "pairs-train-1": True,
        "pairs-export-1": True,
    }


@pytest.mark.parametrize("writes", range(4))
@pytest.mark.parametrize("death", range(1, 25))
def test_operator_that_dies_at_any_write_changes_nothing_in_the_end(death, writes):
    """The operator dies once, in its pass number `death`, after so many writes."""
    world = a_world()
    for i in range(1, 80):
        world.reconcile(writes if i == death else 99)
        run(world, "controllers", "kubelets", "work")
        if i == 12:
            world.kill(1, 137)
    world.settle()
    assert world.status.state is State.COMPLETE
    assert world.status.restarts <= 1


def a_life_with_one_restart(when: int = 0, lie: str = "") -> World:
    """when: the pass in which one read is wrong."""
    world = a_world()
    for i in range(1, 50):
        world.reconcile(lie=lie if i == when else "")
        run(world, "controllers", "kubelets", *(["work"] if i % 3 == 0 else []))
        if world.status.phase == "train" and world.steps == 1 and world.status.attempts.train == 1:
            world.kill(1, 137)
    world.settle()
    return world


@pytest.mark.parametrize("lie", LIES)
def test_one_wrong_answer_changes_nothing_in_the_end(lie):
    calm = a_life_with_one_restart()
    assert (calm.status.state, calm.status.restarts, calm.status.attempts.train) == (State.COMPLETE, 1, 2)
    for when in range(1, 45):
        world = a_life_with_one_restart(when, lie)
        assert (world.status.state, world.status.restarts) == (State.COMPLETE, 1), when
        assert (world.status.attempts, world.made, list(world.jobs)) == (
            calm.status.attempts,
            calm.made,
            list(calm.jobs),
        )


@pytest.mark.parametrize(
    ("fault", "counted"),
    [("kill first", 1), ("kill second", 1), ("crash", 1), ("evict", 0), ("delete jobs", 0)],
)
def test_fault_in_training_is_one_restart(fault, counted):
    world = a_world()
    while not (world.status.phase == "train" and world.steps == 1):
        run(world, "operator", "controllers", "kubelets", "work")
    run(world, fault)
    world.settle()
    assert world.status.state is State.COMPLETE
    assert (world.status.restarts, world.status.counted_restarts) == (1, counted)
    assert world.status.attempts.train == 2


def test_world_notices_a_second_gang():
    """The check that all of this rests on can fail."""
    world = a_world()
    while not (world.status.phase == "train" and any(pod.running for pod in world.pods.values())):
        run(world, "operator", "controllers", "kubelets")
        if world.status.phase != "train":
            run(world, "work")
    job = next(job for job in world.jobs.values() if job.phase == "train")
    labels = {"dpo-operator.dev/phase": "train", "dpo-operator.dev/attempt": "2"}
    manifest = {"kind": "Job", "metadata": {"name": job.name[:-1] + "2", "labels": labels}}
    with pytest.raises(AssertionError, match="is made while"):
        world.carry_out(Create(manifest))
