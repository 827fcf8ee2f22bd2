"""Training and evaluation data of a run: token pairs, and the reference log-probs that the loss needs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.data import mixture
from dpo_trainer.data.dataset import PairDataset, mismatched
from dpo_trainer.losses.objective import Objective
from dpo_trainer.prepare.record import Prepared
from dpo_trainer.runtime.errors import bad_dataset, invalid_configuration
from dpo_trainer.runtime.workdir import WorkDir


@dataclass
class Examples:
    """One split.

    name: training or evaluation.
    mismatched: the prompts with answers to other prompts, for KTO's reference point; None for other methods.
    reference, mismatched_reference: float64 [pairs, 2, 2], nats, see Scored.answers; None until they are computed, and for
        reference-free methods.
    sources: pairs of each source of a mixture, in the order in which they follow each other in the data; empty when there is one.
    """

    name: str
    data: PairDataset
    mismatched: PairDataset | None = None
    reference: Tensor | None = None
    mismatched_reference: Tensor | None = None
    sources: dict[str, int] = field(default_factory=dict)

    def source(self, pairs: Tensor, device: torch.device) -> Tensor | None:
        """Number of the source of some pairs: int64 [pairs] on a device; None when there is one source. pairs: on the CPU."""
        if not self.sources:
            return None
        ends = np.cumsum(list(self.sources.values()))
        return torch.from_numpy(np.searchsorted(ends, pairs.numpy(), side="right")).to(device)

    def add_reference(self, table: Callable[[str, PairDataset], Tensor]) -> None:
        """Fill in the log-probs of the reference. table: (description, data) -> log-probs."""
        self.reference = table(f"the {self.name} pairs", self.data)
        if self.mismatched is not None:
            self.mismatched_reference = table(f"the {self.name} prompts with other answers", self.mismatched)


def open_examples(work: WorkDir, objective: Objective) -> tuple[Examples, Examples | None]:
    """Training pairs, and evaluation pairs where there are any. Raises TrainerError."""
    train = _open("training", work.train_data, objective)
    if train is None:
        raise bad_dataset(f"{work.train_data}: expected at least one training pair, found none; run prepare again")
    return train, _open("evaluation", work.eval_data, objective)


def read_sources(spec: DPOJobSpec, work: WorkDir) -> dict[str, dict[str, int]]:
    """Examples.sources by the name of the split, from prepare's record; empty for one source, and where there is no such record.

    Mixing keeps the order of the sources, in what is trained on and in what is held out, so that counts tell them apart.
    """
    names = mixture.sources(spec.data)
    if len(names) == 1:
        return {}
    try:
        inputs = Prepared.read(work).inputs
        # A round's pairs are its own, whatever the prompts came from.
        found = {} if work.number else {"training": {name: inputs[name].used or 0 for name in names}}
        if spec.data.eval is None:
            found["evaluation"] = {name: inputs[name].held_out or 0 for name in names}
    except (OSError, ValueError, LookupError):
        return {}
    return found


def _open(name: str, folder: Path, objective: Objective) -> Examples | None:
    if name == "evaluation" and not (folder / "meta.json").is_file():
        return None
    data = PairDataset.open(folder)
    if not len(data):
        return None
    if not objective.needs_kl:
        # Any other method compares two answers.
        if alone := int((data.lengths[:, 1:] == 0).any(axis=1).sum()):
            raise invalid_configuration(
                f"spec.method.name: {objective.method.name.value} compares two answers, and {alone} of {len(data)} {name} "
                "examples have only one; use kto, or paired data"
            )
        return Examples(name, data)
    others = mismatched(data)
    if others is None:
        raise invalid_configuration(
            f"spec.method.name: kto estimates a KL divergence from answers to other prompts, and all {len(data)} {name} "
            "examples have the same prompt; use another method, or more prompts"
        )
    return Examples(name, data, others)
