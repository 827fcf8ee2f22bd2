"""One object that the loop tells what happens; it passes the news on to the log, the files and the HTTP server."""

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.names import Phase
from dpo_operator.api.reports import CheckpointRecord, CheckpointRef, Metrics, Progress, SlowestRank
from dpo_operator.api.types import DPOJob
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.console import Console, console, figure
from dpo_trainer.telemetry.metrics_file import INITIAL_LOSS, MetricsFile, initial_loss, read_metrics
from dpo_trainer.telemetry.prometheus import TrainerMetrics
from dpo_trainer.telemetry.server import TelemetryServer, bind_address
from dpo_trainer.telemetry.tensorboard import TensorBoardFile
from dpo_trainer.telemetry.volume import CheckpointFolder, NoCheckpoints, VolumeWatch
from dpo_trainer.telemetry.wandb import WandBRun

# Steps over which speed and time left are averaged: long enough to hold a checkpoint or an evaluation now and then.
_WINDOW = 50
# A save that is quicker than this is not worth a warning, however often there is one.
_SLOW_SAVE_SECONDS = 5.0


class Telemetry:
    """News of one process.

    Metrics are mappings with TRL's keys and no prefix: loss, rewards/chosen, rewards/rejected, rewards/margins,
    rewards/accuracies, logps/chosen, logps/rejected, grad_norm, learning_rate and whatever else the loop has. Rank 0
    shows and stores them; other ranks keep what their pod's server exports.
    """

    def __init__(
        self,
        phase: Phase,
        attempt: int,
        work: WorkDir,
        *,
        rank: int = 0,
        local_rank: int = 0,
        world_size: int = 1,
        checkpoints: CheckpointFolder | None = None,
        show: Console | None = None,
    ) -> None:
        self.rank = rank
        self._local_rank = local_rank
        self._work = work
        self._checkpoints = checkpoints or NoCheckpoints()
        self._show = show or console()
        self._metrics = TrainerMetrics(rank_zero=rank == 0)
        self._lock = threading.Lock()
        self._progress = Progress(phase=phase, attempt=attempt, started_at=time.time(), world_size=world_size)
        self._file: MetricsFile | None = None
        self._tensorboard: TensorBoardFile | None = None
        self._wandb: WandBRun | None = None
        self._server: TelemetryServer | None = None
        self._volume: VolumeWatch | None = None
        self._marks: deque[tuple[float, int]] = deque(maxlen=_WINDOW + 1)
        self._initial_loss: float | None = None
        self._began, self._blocked = time.monotonic(), 0.0
        self._saved_at = time.monotonic()
        self._said_slow = False
        if (algorithm := self._metrics.algorithm) is not None:
            algorithm.attempt.set(attempt)
            algorithm.last_step.set(time.time())

    @property
    def progress(self) -> Progress:
        """A copy of where the phase is."""
        with self._lock:
            return self._progress.model_copy()

    @property
    def metrics(self) -> TrainerMetrics:
        """The Prometheus metrics."""
        return self._metrics

    def serve(self) -> int | None:
        """Start the HTTP server; local rank 0 alone does. Returns its port, None when there is none.

        The port is DPO_METRICS_PORT (0 takes any free one). A port in use costs the metrics, not the run.
        """
        if self._local_rank != 0:
            return None
        text, address = os.environ.get(names.ENV_METRICS_PORT, str(names.METRICS_PORT)), bind_address()
        try:
            port = int(text)
            self._server = TelemetryServer(self._metrics.registry, self._status, port=port, address=address)
        except (OSError, OverflowError, ValueError) as error:
            self.warning("NoMetrics", f"no /metrics and /status on {address} port {text}: {error}")
            return None
        if self.rank == 0:
            self._volume = VolumeWatch(self._work, self._checkpoints)
        if self.rank == 0 and "KUBERNETES_SERVICE_HOST" not in os.environ:
            self._show.say(f"metrics and status: http://{address}:{self._server.port}/metrics and /status")
        return self._server.port

    def activity(self, text: str) -> None:
        """What is being done now, such as 'reference log-probs'. A change is shown."""
        if text == self.progress.activity:
            return
        self._update(activity=text)
        if self.rank == 0:
            self._show.say(text)

    def alive(self, activity: str | None = None) -> None:
        """A piece of work within a step or between two is done, so that the hang detector stays quiet. Shows nothing.

        It must follow the work itself and never a clock: what hangs has to fall silent. From any thread.
        """
        self._update(last_step_at=time.time(), **({} if activity is None else {"activity": activity}))
        self._stamp()

    def track(self, job: DPOJob) -> None:
        """Also log to the trackers that the job names."""
        if self.rank == 0 and (settings := job.spec.tracking.wandb) is not None:
            self._wandb = WandBRun(settings, job, self._work.root)

    def begin(
        self,
        *,
        max_steps: int,
        resumed_step: int = 0,
        resumed_epoch: float = 0.0,
        checkpoint: CheckpointRef | None = None,
        recorded: Sequence[CheckpointRecord] = (),
        checkpoint_interval: int = 0,
        info: Mapping[str, str] | None = None,
    ) -> None:
        """The first step comes next. Opens the files; lines after the resumed step are cut.

        recorded: checkpoints that earlier attempts committed. info: model, loss_type, peft, zero_stage. Raises OSError when the volume can't be written to.
        """
        self._update(
            activity="training",
            max_steps=max_steps,
            step=resumed_step,
            epoch=resumed_epoch,
            resumed_from_step=resumed_step if checkpoint is not None else None,
            checkpoint=checkpoint,
            recorded=self._remember(recorded, checkpoint),
            last_step_at=time.time(),
        )
        self._began = self._saved_at = time.monotonic()
        self._marks.append((self._began, 0))
        if (algorithm := self._metrics.algorithm) is None:
            return
        self._file = MetricsFile(self._work.metrics, resumed_step=resumed_step)
        if (known := initial_loss(read_metrics(self._work.metrics))) is not None:
            algorithm.initial_loss.set(known)
        self._tensorboard = TensorBoardFile(self._work.tensorboard, resumed_step=resumed_step)
        algorithm.max_steps.set(max_steps)
        algorithm.step.set(resumed_step)
        algorithm.epoch.set(resumed_epoch)
        algorithm.ck_interval.set(checkpoint_interval)
        algorithm.last_step.set(time.time())
        if info is not None:
            algorithm.info.labels(*(info[key] for key in ("model", "loss_type", "peft", "zero_stage"))).set(1)
        if checkpoint is not None:
            algorithm.resumed_step.set(resumed_step)
            algorithm.ck_step.set(checkpoint.step)
            algorithm.ck_time.set(checkpoint.time)
            self._show.say(f"goes on from step {resumed_step}, saved by attempt {checkpoint.attempt}")

    def initial_margin(self, margin: float) -> None:
        """Mean reward margin before the first step, nats."""
        if (algorithm := self._metrics.algorithm) is not None:
            algorithm.initial_margin.set(margin)

    def initial_loss(self, loss: float) -> None:
        """Loss that the first pairs have while the policy is the reference. Kept in the first line of metrics.jsonl."""
        self._initial_loss = loss
        if (algorithm := self._metrics.algorithm) is not None:
            algorithm.initial_loss.set(loss)

    def step(
        self,
        step: int,
        *,
        epoch: float,
        seconds: float,
        pairs: int,
        tokens: int,
        truncated: int = 0,
        metrics: Mapping[str, float] | None = None,
        gpu_memory_peak: int | None = None,
        utilization: float | None = None,
        slowest: SlowestRank | None = None,
    ) -> None:
        """An optimizer step is finished.

        pairs, tokens, truncated: of all ranks. seconds: of this step. metrics: reduced over all ranks; None for a step
        that is not logged. gpu_memory_peak: bytes, of this rank. utilization: share of the GPUs' peak, where known.
        slowest: of all ranks, where known.
        """
        now = time.time()
        self._marks.append((time.monotonic(), pairs))
        elapsed = self._marks[-1][0] - self._marks[0][0]
        done = len(self._marks) - 1
        fields: dict[str, Any] = {"step": step, "epoch": epoch, "last_step_at": now, "activity": "training"}
        if elapsed > 0:
            fields["pairs_per_second"] = sum(count for _, count in list(self._marks)[1:]) / elapsed
            fields["eta_seconds"] = max(0, self.progress.max_steps - step) * elapsed / done
        if slowest is not None:
            fields["slowest"] = slowest
        if metrics is not None:
            fields["train"] = _summary(metrics, self.progress.train)
        self._update(**fields)
        self._metrics.step_seconds.observe(seconds)
        if gpu_memory_peak is not None:
            self._metrics.gpu_memory_peak(self._local_rank, gpu_memory_peak)
        if (algorithm := self._metrics.algorithm) is None:
            return
        algorithm.step.set(step)
        algorithm.epoch.set(epoch)
        algorithm.pairs.inc(pairs)
        algorithm.tokens.inc(tokens)
        algorithm.truncated.inc(truncated)
        if utilization is not None:
            algorithm.utilization.set(utilization)
        if slowest is not None:
            algorithm.slowest(slowest.rank, slowest.ratio)
        algorithm.last_step.set(now)
        if metrics is None:
            return
        algorithm.values("train", metrics)
        line = {"epoch": epoch, **metrics, "pairs": pairs, "step_seconds": seconds}
        if self._initial_loss is not None:
            line[INITIAL_LOSS], self._initial_loss = self._initial_loss, None
        self._store(step, line, prefix="", now=now)
        self._show.step(self.progress, metrics)

    def ended(self, message: str) -> None:
        """The run is over: what is done of it is the whole, also when more steps had been planned. message: how it ended."""
        self._update(max_steps=self.progress.step, eta_seconds=None)
        if (algorithm := self._metrics.algorithm) is not None:
            algorithm.max_steps.set(self.progress.step)
            self._show.say(message)

    def nonfinite_step(self) -> None:
        """A step's loss or gradient was NaN or infinite."""
        if (algorithm := self._metrics.algorithm) is not None:
            algorithm.nonfinite.inc()

    def skipped_step(self) -> None:
        """A step's update was left out."""
        if (algorithm := self._metrics.algorithm) is not None:
            algorithm.skipped.inc()

    def rewind(self, step: int, epoch: float) -> None:
        """The run went back to the state after `step`; later lines are cut, and their steps come again. Raises OSError."""
        self._update(step=step, epoch=epoch, last_step_at=time.time(), activity="training")
        self._marks.clear()
        self._marks.append((time.monotonic(), 0))
        if (algorithm := self._metrics.algorithm) is None:
            return
        algorithm.rollbacks.inc()
        algorithm.step.set(step)
        algorithm.epoch.set(epoch)
        if self._file is not None:
            self._file.close()
            self._file = MetricsFile(self._work.metrics, resumed_step=step)
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = TensorBoardFile(self._work.tensorboard, resumed_step=step)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation after `step` optimizer steps is finished; keys as for training, without eval_."""
        self._update(eval=_summary(metrics, self.progress.eval), last_step_at=time.time(), activity="training")
        self._stamp()
        if (algorithm := self._metrics.algorithm) is None:
            return
        algorithm.values("eval", metrics)
        self._store(step, {"epoch": self.progress.epoch, **metrics}, prefix="eval_", now=time.time())
        words = [f"eval at step {step}:"]
        for key, form in (
            ("loss", "loss {:.4f}"),
            ("rewards/margins", "margin {:.3g}"),
            ("rewards/accuracies", "acc {:.2f}"),
        ):
            if key in metrics:
                words.append(figure(form, metrics[key]))
        self._show.say(" ".join(words))

    def checkpoint(self, ref: CheckpointRef, seconds: float) -> None:
        """A checkpoint was committed, so many seconds after its save began. From any thread: it is no sign that the loop lives."""
        self._update(checkpoint=ref, recorded=self._remember(self.progress.recorded, ref))
        self._watch_saves(seconds)
        if (algorithm := self._metrics.algorithm) is None:
            return
        algorithm.ck_step.set(ref.step)
        algorithm.ck_time.set(ref.time)
        algorithm.ck_seconds.observe(seconds)
        self._show.say(f"checkpoint of step {ref.step} committed in {seconds:.1f}s")

    def sync(self) -> None:
        """Put the metrics so far on the disk: before a checkpoint of their steps is committed, or a power cut could lose lines."""
        if self._file is not None:
            self._file.sync()

    def _remember(self, before: Sequence[CheckpointRecord], ref: CheckpointRef | None) -> list[CheckpointRecord]:
        """Rank 0's records, which the operator keeps; the others tell of the newest checkpoint alone."""
        return self._checkpoints.records(before, ref) if self.rank == 0 else []

    def _watch_saves(self, seconds: float) -> None:
        """Say it once when a save takes longer than the time from the end of the one before to its beginning."""
        now = time.monotonic()
        between, self._saved_at = now - seconds - self._saved_at, now
        if self.rank == 0 and not self._said_slow and seconds > max(between, _SLOW_SAVE_SECONDS):
            self._said_slow = True
            self.warning(
                "SlowCheckpoint",
                f"a save took {seconds:.0f} s, {max(0.0, between):.0f} s after the one before. Raise checkpoint.everySteps, or use a "
                "faster volume.",
            )

    def checkpoint_failed(self) -> None:
        """A checkpoint could not be committed."""
        if (algorithm := self._metrics.algorithm) is not None:
            algorithm.ck_failures.inc()

    def warning(self, code: str, text: str) -> None:
        """Something that a person should know and that does not end the run. code: CamelCase."""
        self._show.say(f"Warning: {code}: {text}")

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time of a block as data, ref, policy, optimizer, eval or checkpoint."""
        start = time.monotonic()
        try:
            yield
        finally:
            now = time.monotonic()
            self._metrics.phase(phase, now - start)
            if phase == "checkpoint" and (algorithm := self._metrics.algorithm) is not None:
                self._blocked += now - start
                algorithm.ck_blocked.set(self._blocked / max(now - self._began, 1e-9))

    def close(self, exit_code: int = 0) -> None:
        """Close files, trackers and server; closing again does nothing. exit_code: of the phase."""
        self._show.close()
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.close(exit_code)
        if self._volume is not None:
            self._volume.close()
        if self._server is not None:
            self._server.close()
            self._server = None
        sys.stderr.flush()

    def _store(self, step: int, values: Mapping[str, float], *, prefix: str, now: float) -> None:
        named = {key if key == "epoch" else prefix + key: value for key, value in values.items()}
        if self._file is not None:
            self._file.write({"step": step, **named, "time": round(now, 3)})
            if prefix:
                self._file.sync()
        # TRL's curves are named train/... and eval/...
        group = "eval/" if prefix else "train/"
        curves = {group + key: value for key, value in values.items()}
        if self._tensorboard is not None:
            self._tensorboard.write(step, curves)
        if self._wandb is not None:
            self._wandb.write(step, curves)

    def _stamp(self) -> None:
        if (algorithm := self._metrics.algorithm) is not None:
            algorithm.last_step.set(time.time())

    def _update(self, **fields: Any) -> None:
        with self._lock:
            self._progress = self._progress.model_copy(update=fields)

    def _status(self) -> str:
        # Only here: a termination message has no room to spare.
        room = self._volume.newest if self._volume is not None else None
        return self.progress.model_copy(update={"volume": room}).model_dump_json()


def _summary(metrics: Mapping[str, float], earlier: Metrics) -> Metrics:
    """The values that fit a status; one that is missing or not finite keeps its last finite value."""

    def value(key: str, before: float | None) -> float | None:
        new = metrics.get(key)
        return new if new is not None and math.isfinite(new) else before

    return Metrics(
        loss=value("loss", earlier.loss),
        reward_margin=value("rewards/margins", earlier.reward_margin),
        reward_accuracy=value("rewards/accuracies", earlier.reward_accuracy),
        reward_chosen=value("rewards/chosen", earlier.reward_chosen),
        reward_rejected=value("rewards/rejected", earlier.reward_rejected),
    )
