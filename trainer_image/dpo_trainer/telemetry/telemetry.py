"""The sink that a phase reports to."""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from dpo_operator.api import names
from dpo_operator.api.diagnosis import CODES, Finding
from dpo_operator.api.names import Phase
from dpo_operator.api.reports import CheckpointRecord, CheckpointRef, Progress, RoundReport, SlowestRank, UnitsReport
from dpo_operator.api.types import DPOJob
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.console import Console, Silent, console, learning_parts
from dpo_trainer.telemetry.findings import Findings, as_finding
from dpo_trainer.telemetry.metrics_file import INITIAL_LOSS, first_figures, initial_loss, read_metrics
from dpo_trainer.telemetry.output import Record, Start
from dpo_trainer.telemetry.prometheus import TrainerMetrics
from dpo_trainer.telemetry.records import Records
from dpo_trainer.telemetry.server import TelemetryServer, bind_address
from dpo_trainer.telemetry.tracker import ProgressTracker, SaveTimes
from dpo_trainer.telemetry.volume import CheckpointFolder, NoCheckpoints, VolumeWatch


class Telemetry:
    """Telemetry of one process.

    Metrics are mappings with TRL's keys and no prefix: loss, rewards/chosen, rewards/rejected, rewards/margins,
    rewards/accuracies, logps/chosen, logps/rejected, grad_norm, learning_rate and whatever else the loop has. Rank 0
    shows and keeps them, and exports what all ranks have in common; other ranks export their own times and memory.
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
        """checkpoints: reports the job's checkpoints; used on rank 0. show: the console, stderr by default."""
        self.rank = rank
        self._local_rank = local_rank
        self._work = work
        self._checkpoints: CheckpointFolder = checkpoints if checkpoints and rank == 0 else NoCheckpoints()
        self._warnings = show or console()
        self._show = self._warnings if rank == 0 else Silent()
        self._metrics = TrainerMetrics(rank_zero=rank == 0)
        self._shared = self._metrics.shared
        self._tracker = ProgressTracker(
            Progress(phase=phase, attempt=attempt, started_at=time.time(), world_size=world_size), self._checkpoints
        )
        self._saves, self._findings = SaveTimes(), Findings()
        self._job: DPOJob | None = None
        self._records = Records()
        self._server: TelemetryServer | None = None
        self._volume: VolumeWatch | None = None
        self._initial_loss: float | None = None
        self._shared.attempt.set(attempt)
        self._shared.last_step.set(time.time())

    @property
    def progress(self) -> Progress:
        """A copy of the progress of the phase."""
        return self._tracker.progress

    @property
    def metrics(self) -> TrainerMetrics:
        """The Prometheus metrics."""
        return self._metrics

    def serve(self) -> int | None:
        """Start the HTTP server, on local rank 0 only. Returns its port, None when there is none.

        The port is DPO_METRICS_PORT (0 takes any free one). A port conflict disables the server, not the run.
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
        if "KUBERNETES_SERVICE_HOST" not in os.environ:
            self._show.line(f"metrics and status: http://{address}:{self._server.port}/metrics and /status")
        return self._server.port

    def activity(self, text: str) -> None:
        """Set the current activity, such as 'reference log-probs'. A change is shown."""
        if text == self.progress.activity:
            return
        self._tracker.update(activity=text)
        self._show.line(text)

    def reading(self, activity: str) -> None:
        """Sign of life before anything is finished: a change of activity that is not shown. The start time-out keeps running."""
        self._tracker.update(activity=activity)

    def alive(self, activity: str | None = None) -> None:
        """Heartbeat: call it after each finished piece of work, never from a timer, so that a hang stops it.

        Shows nothing. activity: a new one. From any thread.
        """
        self._tracker.alive(activity)
        self._shared.last_step.set(time.time())

    def track(self, job: DPOJob) -> None:
        """Also log to the trackers that the job names. Call it before `begin`."""
        self._job = job

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
        """Start of training. Opens the outputs; records after the resumed step are cut.

        recorded: checkpoints that earlier attempts committed. info: model, loss_type, peft, zero_stage.
        Raises OSError when the volume can't be written to.
        """
        self._tracker.begin(
            max_steps=max_steps, step=resumed_step, epoch=resumed_epoch, checkpoint=checkpoint, recorded=recorded
        )
        self._saves.begin()
        shared = self._shared
        if self.rank == 0:
            self._records = Records.open(Start(self._work, self._job, resumed_step))
            earlier = read_metrics(self._work.metrics)
            if (known := initial_loss(earlier)) is not None:
                shared.initial_loss.set(known)
            shared.values("eval", first_figures(earlier))
        shared.max_steps.set(max_steps)
        shared.step.set(resumed_step)
        shared.epoch.set(resumed_epoch)
        shared.ck_interval.set(checkpoint_interval)
        shared.last_step.set(time.time())
        if info is not None:
            shared.info.labels(*(info[key] for key in ("model", "loss_type", "peft", "zero_stage"))).set(1)
        if checkpoint is not None:
            shared.resumed_step.set(resumed_step)
            shared.ck_step.set(checkpoint.step)
            shared.ck_time.set(checkpoint.time)
            self._show.line(f"resuming from step {resumed_step}, saved by attempt {checkpoint.attempt}")

    def stands_on(self, record: CheckpointRecord) -> None:
        """The training starts from a checkpoint that is not among its own; it is reported with them. Call it before `begin`."""
        self._checkpoints.keep(record)

    def round(self, report: RoundReport) -> None:
        """Figures of the round so far."""
        self._tracker.update(round=report)
        self._metrics.rounds.round.set(report.round)

    def units(self, report: UnitsReport) -> None:
        """How far the generator or the judge is."""
        self._tracker.update(units=report)

    def generated(self, prompts: int, tokens: Sequence[int]) -> None:
        """Prompts were answered. tokens: of each answer."""
        self._metrics.rounds.generated(prompts, tokens)

    def judged(self, prompts: int) -> None:
        """Answers to prompts were judged."""
        self._metrics.rounds.judged(prompts)

    def attention(self, packing: str, kernel: str) -> None:
        """How pairs go through the model: their layout, and what computes its attention."""
        self._shared.attention(packing, kernel)
        if self.rank == 0:
            self._show.line(f"packing: {packing}; attention by {kernel}")

    def initial_margin(self, margin: float) -> None:
        """Mean reward margin before the first step, nats."""
        self._shared.initial_margin.set(margin)

    def initial_loss(self, loss: float) -> None:
        """Loss of the first pairs while the policy is the reference. Kept in the first line of metrics.jsonl."""
        self._initial_loss = loss
        self._shared.initial_loss.set(loss)

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
        now, shared = time.time(), self._shared
        self._tracker.step(step, epoch=epoch, pairs=pairs, metrics=metrics, slowest=slowest, now=now)
        self._metrics.step_seconds.observe(seconds)
        if gpu_memory_peak is not None:
            self._metrics.gpu_memory_peak(self._local_rank, gpu_memory_peak)
        shared.step.set(step)
        shared.epoch.set(epoch)
        shared.pairs.inc(pairs)
        shared.tokens.inc(tokens)
        shared.truncated.inc(truncated)
        if utilization is not None:
            shared.utilization.set(utilization)
        if slowest is not None:
            shared.slowest(slowest.rank, slowest.ratio)
        shared.last_step.set(now)
        if metrics is None:
            return
        shared.values("train", metrics)
        values = {"epoch": epoch, **metrics, "pairs": pairs, "step_seconds": seconds}
        if utilization is not None:
            values["model_flops_utilization"] = utilization
        if self._initial_loss is not None:
            values[INITIAL_LOSS], self._initial_loss = self._initial_loss, None
        self._records.write(Record(step, "train", values, now))
        self._show.step(self.progress, metrics)

    def ended(self, message: str) -> None:
        """Training ended, possibly early: the finished steps become the planned ones. message: how it ended."""
        self._shared.max_steps.set(self._tracker.ended())
        self._show.line(message)

    def nonfinite_step(self) -> None:
        """A step's loss or gradient was NaN or infinite."""
        self._shared.nonfinite.inc()

    def skipped_step(self) -> None:
        """A step's update was left out."""
        self._shared.skipped.inc()

    def rewind(self, step: int, epoch: float) -> None:
        """Rollback to `step`: later records are cut, and their steps come again. Raises OSError."""
        self._tracker.rewind(step, epoch)
        self._shared.rollbacks.inc()
        self._shared.step.set(step)
        self._shared.epoch.set(epoch)
        self._records.rewind(step)

    def before_first_update(self, metrics: Mapping[str, float]) -> None:
        """What was measured of the policy before its first update: a record of step 0 with the keys of an evaluation."""
        self._shared.values("eval", metrics)
        self._records.write(Record(0, "eval", {"epoch": 0.0, **metrics}, time.time()))

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation after `step` optimizer steps is finished; keys as for training, without eval_."""
        self._tracker.evaluation(metrics)
        self._shared.last_step.set(time.time())
        self._shared.values("eval", metrics)
        self._records.write(Record(step, "eval", {"epoch": self.progress.epoch, **metrics}, time.time()))
        self._show.line(" ".join([f"eval at step {step}:", *learning_parts(metrics)]))

    def checkpoint(self, ref: CheckpointRef, seconds: float) -> None:
        """A checkpoint was committed. seconds: since its save began. From any thread; it does not count as a heartbeat."""
        self._tracker.checkpoint(ref)
        if slow := self._saves.slow_save(seconds):
            self.warning("SlowCheckpoint", slow, once=True)
        self._shared.ck_step.set(ref.step)
        self._shared.ck_time.set(ref.time)
        self._shared.ck_seconds.observe(seconds)
        self._show.line(f"checkpoint of step {ref.step} committed in {seconds:.1f}s")

    def sync(self) -> None:
        """Sync the outputs before a checkpoint of their steps is committed, or a power cut could lose records."""
        self._records.sync()

    def checkpoint_failed(self) -> None:
        """A checkpoint could not be committed."""
        self._shared.ck_failures.inc()

    def warning(
        self, code: str, text: str, *, once: bool = False, finding: Finding | None = None, word: str = "Warning"
    ) -> None:
        """Log a warning, which is a finding, too. code: CamelCase. once: every rank gives the warning, and only rank 0 logs it.

        finding: where it is known better than by the code. word: that it begins with. From any thread.
        """
        if self.rank == 0 or not once:
            self._warnings.line(f"{word}: {code}: {text}")
        if self.rank == 0:
            self._findings.warn(finding or as_finding(code, text, self.progress.step))
            holding = self._findings.holding()
            self._tracker.findings(holding)
            self._shared.findings(holding)

    @property
    def warnings(self) -> list[Finding]:
        """The warnings so far, as findings; on rank 0 alone."""
        return list(self._findings.warnings)

    def diagnosed(self, step: int, findings: Sequence[Finding], new: Sequence[Finding] = ()) -> None:
        """The rules have looked at the figures of `step`: these findings hold now, and earlier ones do not. new: of these, to log."""
        for finding in new:
            if finding.code in CODES:
                self._warnings.line(f"{finding.severity}: {finding.code}: {finding.sentence}")
        self._findings.stated = list(findings)
        holding = self._findings.holding()
        self._tracker.diagnosed(step, holding)
        self._shared.findings(holding)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time of a block as one of prometheus.PHASES."""
        start = time.monotonic()
        try:
            yield
        finally:
            now = time.monotonic()
            self._metrics.phase(phase, now - start)
            if phase == "checkpoint":
                self._shared.ck_blocked.set(self._saves.blocked_share(now - start, now))

    def close(self, exit_code: int = 0) -> None:
        """Close outputs and server; closing again does nothing. exit_code: of the phase."""
        self._warnings.close()
        self._records.close(exit_code)
        if self._volume is not None:
            self._volume.close()
        if self._server is not None:
            self._server.close()
            self._server = None
        sys.stderr.flush()

    def _status(self) -> str:
        # Only here: a termination message has no room to spare.
        volume = self._volume.newest if self._volume is not None else None
        return self.progress.model_copy(update={"volume": volume}).model_dump_json()
