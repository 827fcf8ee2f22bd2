"""Log-probs of the reference model, computed once and kept on the volume; there is no reference model in memory.

By default the reference is the policy before its first update, so the engine that trains computes them too. The weights are
the initial ones whenever this runs: a resumed run loads its checkpoint afterwards. Another reference model has an engine of its own,
which is loaded when log-probs are missing, and dropped before the policy's. What is cached under a key is therefore what this would
compute, and a missing or damaged file costs time and nothing else.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dpo_operator.api.model import AdapterType
from dpo_operator.api.training import Budget
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.batches.batch import Layout
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.engine.engine import Engine
from dpo_trainer.runtime.errors import invalid_configuration
from dpo_trainer.runtime.files import commit
from dpo_trainer.runtime.stop import Stopped, StopRequest
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.training.examples import Examples
from dpo_trainer.training.passes import Look, logps_table

log = logging.getLogger(__name__)

# Changes when the same model and tokens would give other log-probs; files of another version are not read.
VERSION = 2


def reference_key(spec: DPOJobSpec, *, model_digest: str, dataset_digest: str, layout: Layout) -> str:
    """What the log-probs depend on, as SHA-256, hex.

    model_digest: of weights and configuration. dataset_digest: of the token ids, which tokenizer, chat template and
    truncation have already gone into. layout: of the batches; in bf16 another one rounds differently.
    Loss, beta, learning rate and number of ranks are left out: they change nothing.
    """
    facts = {
        "version": VERSION,
        "model": model_digest,
        "dataset": dataset_digest,
        "precision": spec.training.precision,
        "attention": spec.model.attention,
        "layout": layout,
    }
    if spec.adapter.type is AdapterType.QLORA:
        facts["base"] = "nf4"
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def reference_logps(
    open_engine: Callable[[], Engine],
    dataset: PairDataset,
    folder: Path,
    *,
    key: str,
    budget: Budget,
    ranks: Ranks,
    after_each: Callable[[int], None] = lambda _: None,
    look: Look | None = None,
) -> Tensor:
    """Reference log-probs: float64 [pairs, 2, 2], nats, on the CPU of every rank, see Scored.answers. Collective.

    open_engine: the engine with the reference; called only when the log-probs are not in the folder. Call it before any weight has changed.
    budget: of one forward pass. after_each, look: see logps_table.
    Raises TrainerError INVALID_CONFIGURATION when the model gives log-probs that are not finite.
    """
    path = folder / f"{key}.safetensors"
    cached = load_table(path, key=key, pairs=len(dataset)) if ranks.rank == 0 else None
    if ranks.run_on_rank_zero(lambda: cached is not None):
        # Rank 0 read it for all: on a network file system others might see an older state of the folder.
        return ranks.sum(cached if cached is not None else torch.zeros(len(dataset), 2, 2, dtype=torch.float64)).cpu()
    table = logps_table(open_engine(), dataset, budget=budget, after_each=after_each, look=look)
    broken = (~torch.isfinite(table)).flatten(1).any(dim=1).nonzero().flatten()
    if len(broken):
        raise invalid_configuration(
            f"spec.model: expected finite log-probs from the reference, found NaN or infinity in {len(broken)} pairs "
            f"(the first is source row {dataset[int(broken[0])].row}); check the weights, and precision bf16 or fp32"
        )
    ranks.run_on_rank_zero(lambda: save_table(path, table, key=key))
    return table


@dataclass(frozen=True)
class References:
    """Adds the reference log-probs to splits, before the first step.

    open_engine: the engine with the reference; called when log-probs have to be computed. model_digest: of the reference, see the function of
    that name. layout: of its batches.
    """

    spec: DPOJobSpec
    open_engine: Callable[[], Engine]
    ranks: Ranks
    folder: Path
    model_digest: str
    layout: Layout
    telemetry: Telemetry
    stop: StopRequest

    def add_to(self, examples: Examples, *, budget: Budget, look: Look | None = None) -> None:
        """Compute or read the log-probs of one split. Collective. budget: of one forward pass. look: at its pairs, see logps_table.

        Raises TrainerError, see reference_logps, and Stopped when any rank is asked to stop.
        """
        with self.telemetry.timed("ref"):
            examples.add_reference(
                lambda what, data: self._table(what, data, budget, look if data is examples.data else None)
            )

    def _table(self, what: str, data: PairDataset, budget: Budget, look: Look | None) -> Tensor:
        activity = f"reference log-probs of {what}"
        self.telemetry.activity(activity)
        key = reference_key(
            self.spec,
            model_digest=self.model_digest,
            dataset_digest=data.digest,
            layout=self.layout,
        )
        return reference_logps(
            self.open_engine,
            data,
            self.folder,
            key=key,
            budget=budget,
            ranks=self.ranks,
            after_each=progress(activity, self.ranks, self.telemetry, self.stop),
            look=look,
        )


def progress(activity: str, ranks: Ranks, telemetry: Telemetry, stop: StopRequest) -> Callable[[int], None]:
    """Reports progress of passes: after_each of logps_table. It raises Stopped on every rank when any was asked to stop."""

    def after_each(pairs: int) -> None:
        telemetry.alive(f"{activity}: {pairs} done")
        if ranks.sum(torch.tensor([float(stop.is_set())])).item():
            raise Stopped(stop.signal_name or "a signal to another rank")

    return after_each


def save_table(path: Path, table: Tensor, *, key: str) -> None:
    """Write log-probs so that the file is either whole or not there. Raises OSError."""
    from safetensors.torch import save

    metadata = {"key": key, "sha256": _digest(table)}
    path.parent.mkdir(parents=True, exist_ok=True)
    commit(path, save({"logps": table.contiguous()}, metadata=metadata))


def load_table(path: Path, *, key: str, pairs: int) -> Tensor | None:
    """Log-probs from a file that save_table wrote, or None when it is missing or not what it should be."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            table: Tensor = file.get_tensor("logps")
    except (OSError, SafetensorError) as error:
        log.warning("%s can't be read (%s); the reference log-probs are computed again", path, error)
        return None
    if (
        metadata.get("key") != key
        or table.shape != (pairs, 2, 2)
        or table.dtype != torch.float64
        or metadata.get("sha256") != _digest(table)
    ):
        log.warning("%s is damaged; the reference log-probs are computed again", path)
        return None
    return table


def _digest(table: Tensor) -> str:
    return hashlib.sha256(table.contiguous().numpy().tobytes()).hexdigest()
