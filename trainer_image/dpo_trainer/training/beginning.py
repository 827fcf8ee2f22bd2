"""The policy that a training starts from: the initial model, or, in rounds after the first, the policy of the round before.

The engine is made from the initial model in either case. While the reference is the initial model its log-probs are computed first, and the
weights of the round before are loaded then; where the reference is the round before, the other way round.
"""

import torch

from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.checkpoint.loading import Loader
from dpo_trainer.checkpoint.trust import Trust
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.engine.engine import Engine
from dpo_trainer.rounds.start import Start, check_generator, checked_pairs, generator_logps, start_of
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.training.examples import Examples
from dpo_trainer.training.passes import logps_table


def start_at(
    spec: DPOJobSpec, work: WorkDir, trust: Trust | None, telemetry: Telemetry
) -> tuple[Start | None, Trust | None]:
    """Where a round's training starts, None for the initial model, and the records of checkpoints that are the training's own."""
    start = start_of(spec, work, trust)
    if start is None:
        return None, trust
    telemetry.stands_on(start.record)
    return start, start.trust_of_round(trust)


class Beginning:
    """Sets the engine to the policy that training starts from. Methods are collective."""

    def __init__(
        self, spec: DPOJobSpec, work: WorkDir, engine: Engine, ranks: Ranks, start: Start | None, telemetry: Telemetry
    ) -> None:
        """start: None for the initial model, which the engine holds."""
        self._spec, self._work, self._engine, self._ranks = spec, work, engine, ranks
        self._start, self._telemetry = start, telemetry
        rounds = spec.iterative
        self._refers_to_start = start is not None and rounds is not None and rounds.reference == "previous"
        self._loaded = start is None

    @property
    def is_level(self) -> bool:
        """Whether the policy is the reference before its first update, as far as the reference is not another model."""
        return self._start is None or self._refers_to_start

    def reference_digest(self, model: str) -> str:
        """Digest of the reference, hex. model: of the initial model."""
        return self._start.reference_digest(model) if self._start and self._refers_to_start else model

    def reference(self) -> Engine:
        """The engine with the weights of the reference: for log-probs that are not known yet."""
        if self._refers_to_start:
            self._load()
        return self._engine

    def check(self, train: Examples) -> None:
        """Load the policy that training starts from, and compare it with the generator's. Raises TrainerError when they differ."""
        self._load()
        if self._work.number == 0:
            return
        data = train.data
        generated = generator_logps(self._work, len(data))
        some = checked_pairs(generated)
        if not len(some):
            return
        self._telemetry.activity("comparing the policy with the one that generated the answers")
        table = logps_table(self._engine, data, budget=self._spec.eval_batch, indices=some)
        trained, tokens = table[torch.from_numpy(some), :, 0].numpy(), data.lengths[some, 1:]
        difference = check_generator(self._spec, self._work, generated[some], trained, tokens)
        if self._telemetry.rank == 0:
            self._telemetry.activity(f"trainer and generator agree within {difference:.1g} nats a token")

    def _load(self) -> None:
        if self._loaded or self._start is None:
            return
        self._telemetry.activity(f"loading the policy of round {self._work.number - 1}")
        owner = self._start.owner
        loader = Loader(self._start.folder.parent, owner.identity, self._ranks, owner.trust)
        loader.load_weights(self._start.folder, self._start.digest, self._engine.state())
        self._engine.allocate_optimizer_state()
        self._loaded = True
