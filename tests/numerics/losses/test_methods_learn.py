"""Every method of the benchmark learns an easy preference from a few real pairs: better than chance, better than length alone."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.methods import DATASETS, ROWS, Row, document
from dpo_operator.api.types import DPOJob
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.prepare import phase as prepare
from dpo_trainer.prepare.inputs import Inputs
from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import train_on_rank
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

TRAIN_PAIRS, EVAL_PAIRS, LONGEST = 80, 64, 100
POLITE = DATASETS[0]
NOTHING = np.zeros(0, np.int32)


@pytest.fixture(scope="module")
def polite(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    """Short pairs of polite_rude, prepared; the methods share its cached reference."""
    work = WorkDir(tmp_path_factory.mktemp("polite"))
    data = POLITE.paired(shared / "data" / "polite_rude", limit=None)
    job = DPOJob.model_validate(document(ROWS[0], POLITE, data, shared / "models" / "stories260K"))
    prepare.run(job, work, Inputs(work.root))
    for folder, count in ((work.train_data, TRAIN_PAIRS), (work.eval_data, EVAL_PAIRS)):
        pairs = PairDataset.open(folder)
        pairs.select(np.flatnonzero(pairs.lengths.sum(axis=1) <= LONGEST)[:count].tolist()).save(folder)
    work.reference.mkdir()
    return work


def apart(pairs: PairDataset) -> PairDataset:
    """Each answer as an example of its own."""
    found = (pairs[i] for i in range(len(pairs)))
    return PairDataset.from_pairs(
        TokenPair(pair.prompt, *answers, pair.row)
        for pair in found
        for answers in ((pair.chosen, NOTHING), (NOTHING, pair.rejected))
    )


# Variants of a method that CI trains, too; that their losses and gradients are right is tested elsewhere for each of them.
EXHAUSTIVE = ("dpo-smoothed", "dpo-robust", "dpo-nll", "dpo+ipo", "hinge", "orpo-no-nll")
# A reward model begins with a new head and needs more pairs; tests/numerics/reward trains it.
CASES = [
    pytest.param(row, id=row.name, marks=[pytest.mark.exhaustive] if row.name in EXHAUSTIVE else [])
    for row in ROWS
    if row.name != "reward-model"
]


@pytest.mark.parametrize("row", CASES)
def test_a_method_learns_what_the_labels_say(row: Row, polite: WorkDir, tmp_path: Path):
    work = WorkDir(tmp_path)
    for path in (polite.model, polite.reference):
        (tmp_path / path.name).symlink_to(path)
    pairs = PairDataset.open(polite.train_data)
    (apart(pairs) if row.unpaired else pairs).save(work.train_data)
    PairDataset.open(polite.eval_data).save(work.eval_data)
    job = document(row, POLITE, {"train": {"source": "unused"}}, polite.model)
    job["spec"]["training"]["globalBatchSize"] //= 2  # twice the steps of the benchmark on as many pairs

    [rank] = on_ranks(1, train_on_rank, job, tmp_path)
    [evaluated] = rank["evals"]
    accuracy, baseline = evaluated["eval_rewards/accuracies"], evaluated["eval_length_baseline_accuracy"]
    assert rank["warnings"] == []
    assert accuracy > max(0.5, baseline) + 0.05, f"accuracy {accuracy:.3f}, longer or shorter answer {baseline:.3f}"
    assert evaluated["eval_rewards/margins"] > 0
