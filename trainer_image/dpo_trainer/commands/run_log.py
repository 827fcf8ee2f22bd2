"""Summary of a run, from the files in its work folder."""

from collections.abc import Sequence
from dataclasses import dataclass

from dpo_operator.api.reports import Progress, Termination
from dpo_trainer.checkpoint.loop_state import LoopState
from dpo_trainer.checkpoint.manifest import newest_state
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.metrics_file import Line, initial_loss, read_metrics, training_and_evaluations
from dpo_trainer.telemetry.selection import METRICS


@dataclass(frozen=True)
class Best:
    """The best evaluation. metric: its name in the spec."""

    step: int
    metric: str
    value: float


@dataclass(frozen=True)
class Run:
    """Summary of a run.

    restarts: steps at which later attempts resumed. start: the loss of a policy that equals the reference; None for methods
    without one. ending: how it ended, "" before that. early: whether that was before the planned end. samples: lines of
    samples.jsonl.
    """

    train: list[Line]
    evaluations: list[Line]
    restarts: tuple[int, ...] = ()
    start: float | None = None
    ending: str = ""
    early: bool = False
    best: Best | None = None
    samples: tuple[Line, ...] = ()

    @property
    def seconds(self) -> float:
        """Time in optimizer steps."""
        return sum(line.get("step_seconds") or 0.0 for line in self.train)

    @property
    def pairs(self) -> int:
        """Pairs of the logged steps. Counted, not steps times globalBatchSize: a last step may have fewer."""
        return sum(line.get("pairs") or 0 for line in self.train)


def points_of(lines: Sequence[Line], key: str) -> list[tuple[int, float]]:
    """Step and value of a metric in the lines that have it."""
    return [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]


def read_run(work: WorkDir) -> Run:
    """Collect the metrics, the samples, the loop state of the newest checkpoint, and the restarts.

    Restarts are taken from the attempts' termination files, where these are in the work folder.
    """
    lines = read_metrics(work.metrics)
    restarts = set()
    for path in work.root.glob("termination-train-*-0.json"):
        termination = Termination.from_text(path.read_text(encoding="utf-8"))
        progress = termination.progress if termination else None
        if progress and progress.resumed_from_step and _is_of(progress, work):
            restarts.add(progress.resumed_from_step)
    train, evaluations = training_and_evaluations(lines)
    last = train[-1]["step"] if train else 0
    loop = newest_state(work.checkpoints)
    return Run(
        train,
        evaluations,
        # A finished run that is started again resumes at its last step and does nothing more.
        tuple(sorted(step for step in restarts if step < last)),
        start=initial_loss(lines),
        ending=loop.finished if loop else "",
        early=loop is not None and bool(loop.finished) and loop.step < loop.total_steps,
        best=_best(evaluations, loop),
        samples=tuple(read_metrics(work.samples)),
    )


def _is_of(progress: Progress, work: WorkDir) -> bool:
    """Whether an attempt was of the leg. Those of all rounds are in one folder; the checkpoint's path tells whose an attempt was."""
    return not work.leg or (progress.checkpoint is not None and progress.checkpoint.path.startswith(f"{work.leg}/"))


def _best(evaluations: list[Line], loop: LoopState | None) -> Best | None:
    """The first evaluation with the lowest cost, as the run itself judged; None before the first."""
    if loop is None:
        return None
    costs = [(cost, step) for step, cost in loop.evaluations if cost is not None]
    metric = loop.selection_metric
    if not costs or metric not in METRICS:
        return None
    step, key = min(costs)[1], f"eval_{METRICS[metric][0]}"
    value = next((line.get(key) for line in evaluations if line["step"] == step), None)
    return Best(step, metric, value) if value is not None else None
