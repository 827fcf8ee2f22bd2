"""The pairs to train on and to evaluate on, out of one or more sources."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dpo_operator.api.data import Data, Dataset
from dpo_trainer.data import statistics
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.runtime.errors import bad_dataset


@dataclass(frozen=True)
class Mixed:
    """Pairs after holding out and weighting.

    train: in the order of the sources. used, held_out: number of pairs by source, in an epoch of training and held out.
    """

    train: PairDataset
    evaluation: PairDataset | None
    used: dict[str, int]
    held_out: dict[str, int]


def sources(data: Data) -> dict[str, Dataset]:
    """Sources of the training data by the names that messages and files give them."""
    return {"train": data.train} | {f"mixture[{i}]": dataset for i, dataset in enumerate(data.mixture)}


def is_random(data: Data) -> bool:
    """Whether the pairs that are trained on depend on the seed."""
    held_out = data.eval is None and data.eval_fraction > 0
    return held_out or any(not dataset.weight.is_integer() for dataset in sources(data).values())


def mix(data: Data, seed: int, found: Mapping[str, PairDataset]) -> Mixed:
    """Hold pairs out, then repeat or thin out what is left of each source by its weight.

    found: pairs of each source, and of eval where it is given. The same pairs, settings and seed give the same order: the
    sources one after the other, each in the order of its rows, once for every whole unit of weight and then the random part.
    Raises TrainerError BAD_DATASET when nothing is left of a source, or to evaluate on.
    """
    specs = sources(data)
    whole = found["train"] if len(specs) == 1 else PairDataset.from_pairs(
        found[name][i] for name in specs for i in range(len(found[name]))
    )  # fmt: skip
    evaluation, held = found.get("eval"), np.zeros(len(whole), dtype=np.bool_)
    if evaluation is None and data.eval_fraction > 0:
        evaluation = _hold_out(whole, data.eval_fraction, seed, held)
    order: list[int] = []
    used, held_out, start = {}, {}, 0
    for number, (name, spec) in enumerate(specs.items()):
        stop = start + len(found[name])
        left = start + np.flatnonzero(~held[start:stop])
        indices = weighted(left.tolist(), spec.weight, np.random.default_rng([seed, number]))
        if len(left) and not indices:
            raise bad_dataset(
                f"{name}: weight {spec.weight:g} of {len(left)} pairs leaves none; raise it, or leave {name} out"
            )
        used[name], held_out[name] = len(indices), stop - start - len(left)
        order.extend(indices)
        start = stop
    train = whole if order == list(range(len(whole))) else whole.select(order)
    return Mixed(train, evaluation, used, held_out)


def weighted(indices: list[int], weight: float, random: np.random.Generator) -> list[int]:
    """Each index as often as the weight says: all of them once for each whole unit, and a random part without repeats.

    The part is rounded to whole pairs, and keeps their order.
    """
    part = round((weight - int(weight)) * len(indices))
    chosen = sorted(random.permutation(len(indices))[:part].tolist())
    return indices * int(weight) + [indices[i] for i in chosen]


def _hold_out(whole: PairDataset, fraction: float, seed: int, held: np.ndarray) -> PairDataset:
    keep, out = statistics.hold_out(whole, fraction, seed)
    if not out or not keep:
        raise bad_dataset(
            f"train: evalFraction {fraction:g} of {len(whole)} pairs leaves {len(keep)} to train on and "
            f"{len(out)} to evaluate on (pairs with the same prompt stay together); give data.eval, or another fraction"
        )
    held[out] = True
    return whole.select(out)
