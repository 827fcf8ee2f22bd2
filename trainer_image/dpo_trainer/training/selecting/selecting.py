"""Ranks the pairs when a step needs it. What was committed is used again by later attempts, whatever their number of ranks."""

import time

import numpy as np
import torch

from dpo_operator.api.diagnosis import Figure, Finding
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.trainingparts.selection import Selection
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.batches import rankings
from dpo_trainer.batches.plans import Plan
from dpo_trainer.batches.rankings import Ranking
from dpo_trainer.batches.sampler import Indices
from dpo_trainer.batches.selected import Ease, SelectedPlan
from dpo_trainer.checkpoint.loading import Restored
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.engine.engine import Engine
from dpo_trainer.losses.objective import Objective
from dpo_trainer.runtime.errors import TrainerError, volume_error
from dpo_trainer.runtime.stop import StopRequest
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.training.examples import Examples
from dpo_trainer.training.selecting.figures import Measured, measure
from dpo_trainer.training.shortage import Shortage


class Selecting:
    """The lists of kept pairs of one training. Methods are collective."""

    def __init__(
        self,
        spec: DPOJobSpec,
        plan: SelectedPlan,
        engine: Engine,
        objective: Objective,
        train: Examples,
        ranks: Ranks,
        work: WorkDir,
        shortage: Shortage,
        telemetry: Telemetry,
        stop: StopRequest,
    ) -> None:
        self._spec, self._plan, self._engine, self._objective, self._train = spec, plan, engine, objective, train
        self._ranks, self._folder, self._shortage = ranks, work.selection, shortage
        self._telemetry, self._stop = telemetry, stop
        # Of lists that steps of an earlier attempt used, by epoch.
        self._expected: dict[int, str] = {}

    @property
    def _selection(self) -> Selection:
        return self._plan.selection

    def resume(self, step: int, digest: str | None) -> None:
        """Training resumes after a step. digest: of the list that the step used."""
        epoch = self._plan.needs(step)
        if epoch is not None and digest is not None:
            self._expected[epoch] = digest

    def digest(self, step: int) -> str | None:
        """Digest of the list that a step used; None in the warm-up. Not collective."""
        epoch = self._plan.needs(step)
        if epoch is None:
            return None
        listed = self._plan.lists.get(epoch)
        return rankings.digest(listed) if listed is not None else self._expected.get(epoch)

    def is_due(self, step: int) -> bool:
        """Whether a step needs a list that is not there yet. Not collective."""
        epoch = self._plan.needs(step)
        return epoch is not None and epoch not in self._plan.lists

    def make_ready(self, step: int) -> bool:
        """Have the list that a step needs, from the volume or by ranking the pairs. False when a stop came meanwhile.

        Raises TrainerError VOLUME_ERROR when steps that the training resumes from used another list than there is.
        """
        if not self.is_due(step):
            return True
        epoch = self._plan.needs(step)
        assert epoch is not None
        found: list[tuple[Ranking, Indices]] = []
        problem = self._ranks.run_on_rank_zero(lambda: self._read(epoch, found))
        if problem:
            if not self._rank(epoch, step - 1, found):
                return False
            self._ranks.run_on_rank_zero(lambda: self._write(found))
        listed = (
            torch.from_numpy(found[0][1].copy()) if found else torch.zeros(self._plan.kept(epoch), dtype=torch.int64)
        )
        # Rank 0 has it for all: on a network file system others might see an older state of the folder.
        self._plan.lists.clear()
        self._plan.lists[epoch] = self._ranks.sum(listed).numpy()
        for ranking, _ in found:
            self._say(ranking)
        self._telemetry.alive("training")
        return True

    def _read(self, epoch: int, found: list[tuple[Ranking, Indices]]) -> str:
        """Read what is committed; why there is nothing to use, "" when there is. On rank 0."""
        read = rankings.read(
            self._folder, epoch, key=self._key(epoch), pairs=self._plan.pairs, kept=self._plan.kept(epoch)
        )
        expected = self._expected.get(epoch)
        if not isinstance(read, str) and expected not in (None, read[0].sha256):
            read = f"epoch-{epoch}.npy has the SHA-256 {read[0].sha256}"
        if not isinstance(read, str):
            found.append(read)
            return ""
        if expected is not None:
            raise volume_error(
                f"{self._folder}: expected the list of pairs with the SHA-256 {expected}, which the steps before the checkpoint trained on, found that "
                f"{read}; bring the folder back, or begin again in a new work folder"
            )
        return read

    def _write(self, found: list[tuple[Ranking, Indices]]) -> None:
        for ranking, kept in found:
            rankings.write(self._folder, ranking, kept)

    def _rank(self, epoch: int, step: int, found: list[tuple[Ranking, Indices]]) -> bool:
        """Rank the pairs; False when a stop came meanwhile. step: the last finished one. found: gets the result, on rank 0."""
        began, ranked, selection = time.monotonic(), self._plan.ranked(epoch), self._selection
        gaps: Ease = self._train.data.score_gaps[ranked]
        figures, tokens = gaps, 0
        if selection.has_pass:
            measured = self._measure(ranked)
            if measured is None:
                return False
            gaps, tokens = measured.gaps.numpy()[ranked], measured.tokens
            figures = measured.losses.numpy()[ranked] if selection.by == "heldOutLoss" else gaps
            figures = np.abs(gaps) if selection.by == "absoluteRewardGap" else figures
        if self._ranks.rank:
            return True
        found.append(
            rankings.rank(
                selection,
                figures,
                gaps,
                ranked,
                key=self._key(epoch),
                epoch=epoch,
                step=step,
                pairs=self._plan.pairs,
                seed=self._plan.seed,
                sources=self._train.sources,
                tokens=tokens,
                seconds=time.monotonic() - began,
            )
        )
        return True

    def _measure(self, ranked: Indices) -> Measured | None:
        activity = f"ranking {len(ranked):,} pairs"
        self._telemetry.activity(activity)
        with self._telemetry.timed("selection"):
            measured, fitted = self._shortage.within(
                self._spec.eval_batch,
                lambda budget: measure(
                    self._engine,
                    self._objective,
                    self._train,
                    ranked,
                    budget=budget,
                    after_each=lambda pairs: self._telemetry.alive(f"{activity}: {pairs} done"),
                    should_stop=lambda: self._engine.any_rank(self._stop.is_set()),
                ),
                world_size=self._engine.world.world_size,
                telemetry=self._telemetry,
                of="ranking",
            )
        if not fitted:
            raise TrainerError(
                ExitCode.INTERNAL_ERROR,
                "A single pair did not fit into memory when the pairs were ranked; lower data.maxLength, or leave training.selection out, and "
                "delete shortage.json in the work folder.",
            )
        return measured

    def _key(self, epoch: int) -> str:
        plan = self._plan
        return rankings.key_of(
            plan.selection, dataset=self._train.data.digest, seed=plan.seed, shuffle=plan.shuffle, batch=plan.global_batch_size, epoch=epoch
        )  # fmt: skip

    def _say(self, ranking: Ranking) -> None:
        """Tell of a ranking. On rank 0."""
        self._telemetry.metrics.selection.set(
            ranked=ranking.ranked, kept=ranking.kept, wrong_sign=ranking.wrong_sign, tokens=ranking.tokens
        )
        figures = (
            Figure(name="kept", value=ranking.kept), Figure(name="ranked", value=ranking.ranked),
            Figure(name="wrong_sign", value=ranking.wrong_sign),
        )  # fmt: skip
        finding = Finding(
            code="PairsSelected", severity="Info", step=ranking.step, figures=figures, cause=ranking.sentence, setting="training.selection"
        )  # fmt: skip
        self._telemetry.warning("PairsSelected", ranking.sentence, finding=finding, word="Info")


def selecting_of(
    spec: DPOJobSpec,
    plan: Plan,
    engine: Engine,
    objective: Objective,
    train: Examples,
    ranks: Ranks,
    work: WorkDir,
    shortage: Shortage,
    telemetry: Telemetry,
    stop: StopRequest,
    restored: Restored | None,
) -> Selecting | None:
    """What chooses a training's pairs, from the step that it resumes from; None for all pairs."""
    if not isinstance(plan, SelectedPlan):
        return None
    made = Selecting(spec, plan, engine, objective, train, ranks, work, shortage, telemetry, stop)
    if restored is not None:
        made.resume(restored.step, restored.state.selected)
    return made
