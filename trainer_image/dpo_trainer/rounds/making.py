"""The training pairs of a round, made of the sampled ids: nothing is decoded and encoded again."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.data.prompts import PromptSet
from dpo_trainer.judging import Judged
from dpo_trainer.rounds.pairs import Chosen, choose, mixed_in
from dpo_trainer.rounds.units import Unit
from dpo_trainer.runtime.files import commit
from dpo_trainer.runtime.workdir import WorkDir


@dataclass(frozen=True)
class Made:
    """pairs: to train on. logps: of their answers under the policy that generated them, nats. left_out: prompts without a pair, by reason."""

    chosen: tuple[Chosen, ...]
    pairs: tuple[TokenPair, ...]
    logps: tuple[tuple[float, float], ...]
    left_out: dict[str, int]


def make_pairs(
    spec: DPOJobSpec, work: WorkDir, prompts: PromptSet, units: Sequence[Unit], judged: Sequence[Judged]
) -> Made:
    """Pairs of a round's answers, in the order of its prompts. work: the round's leg. judged: of every prompt."""
    assert spec.iterative is not None
    chosen, pairs, logps, left_out = [], [], [], Counter[str]()
    asked = [(int(row), answers) for unit in units for row, answers in zip(unit.rows, unit.answers, strict=True)]
    for (number, answers), one, prompt in zip(asked, judged, prompts.read(n for n, _ in asked), strict=True):
        place = (spec.training.seed, work.number, number)
        found = choose(answers, one, spec.iterative.pairs, place=place)
        if not isinstance(found, Chosen):
            left_out[found] += 1
            continue
        better, worse = answers[found.chosen], answers[found.rejected]
        cut = not (better.ended and worse.ended)
        chosen.append(found)
        pairs.append(TokenPair(prompt.ids, better.ids, worse.ids, prompt.row, cut))
        logps.append((better.logp, worse.logp))
    return Made(tuple(chosen), tuple(pairs), tuple(logps), dict(sorted(left_out.items())))


def save_pairs(spec: DPOJobSpec, work: WorkDir, found: Made) -> None:
    """Write the training pairs of a round, and what the generator gave their answers; the first round's with pairs of data.train.

    Raises TrainerError when those can't be read, and OSError.
    """
    assert spec.iterative is not None
    pairs, logps = list(found.pairs), list(found.logps)
    if work.number == 1 and spec.iterative.mix_offline:
        offline = PairDataset.open(work.round(0).train_data)
        mixed = mixed_in(len(offline), spec.iterative.mix_offline, spec.training.seed)
        pairs += [offline[i] for i in mixed]
        logps += [(np.nan, np.nan)] * len(mixed)
    buffer = io.BytesIO()
    np.save(buffer, np.array(logps, dtype=np.float64).reshape(-1, 2), allow_pickle=False)
    work.train_data.parent.mkdir(parents=True, exist_ok=True)
    # First: the pairs' own folder is complete when its last file is there.
    commit(work.generator_logps, buffer.getvalue())
    PairDataset.from_pairs(pairs).save(work.train_data)
