"""Reference log-probs: what they are, when they are read again, and that a damaged file is not believed."""

from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import a_job, make_model, plain_training, some_pairs, train_on_rank
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

PAIRS = 7


@pytest.fixture
def work(tmp_path: Path) -> WorkDir:
    work = WorkDir(tmp_path)
    some_pairs(PAIRS).save(work.train_data)
    on_ranks(1, make_model, work.model)
    return work


def reference(work: WorkDir) -> Path:
    [path] = work.reference.glob("*.safetensors")
    return path


def read(path: Path) -> Any:
    """Log-probs of whole answers: [pairs][2]."""
    from safetensors.torch import load_file

    return load_file(path)["logps"][..., 0].tolist()


def shift(path: Path, nats: float) -> None:
    """Replace a cache by a valid one whose chosen log-probs are too high."""
    from safetensors.torch import load_file

    from dpo_trainer.training.reference import save_table

    table = load_file(path)["logps"]
    table[:, 0] += nats
    save_table(path, table, key=path.stem)


def plain_logps(model: Path) -> list[list[float]]:
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    policy, data = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), some_pairs(PAIRS)
    found = []
    with torch.no_grad():
        for pair in (data[i] for i in range(PAIRS)):
            sums = []
            for answer in (pair.chosen, pair.rejected):
                ids = torch.tensor(np.concatenate([pair.prompt, answer])[None].astype(np.int64))
                logps = policy(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
                sums.append(logps[len(pair.prompt) - 1 :].sum().item())
            found.append(sums)
    return found


def first_margin(run: list[dict[str, Any]]) -> float:
    return run[0]["steps"][0]["rewards/margins"]


def test_written_once_and_read_afterwards(work: WorkDir, tmp_path: Path):
    document = a_job(maxSteps=2, globalBatchSize=PAIRS)
    first = on_ranks(2, train_on_rank, document, work.root)
    assert first_margin(first) == pytest.approx(0, abs=1e-6)
    [cached], [expected] = on_ranks(1, read, reference(work)), on_ranks(1, plain_logps, work.model)
    for found, alone in zip(cached, expected, strict=True):
        assert found == pytest.approx(alone, abs=1e-4)

    # A cache that says something else is believed: beta * (0 - 2 nats) is the first margin then.
    on_ranks(1, shift, reference(work), 2.0)
    again = on_ranks(2, train_on_rank, a_job(maxSteps=1, globalBatchSize=PAIRS, learningRate=1e-4), other_run(work))
    assert first_margin(again) == pytest.approx(-0.2, abs=1e-5)
    assert again[0]["warnings"] == ["FirstStepLoss", "FirstStepMargin"]


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_in_bf16_the_first_margin_is_exactly_zero(tmp_path: Path, ranks: int):
    """Log-probs in bf16 depend on the shape of a batch, so the reference's pass must have the training's."""
    work = WorkDir(tmp_path)
    some_pairs(40).save(work.train_data)
    on_ranks(1, make_model, work.model)
    document = a_job(maxSteps=1, globalBatchSize=40, microBatchSize=1, precision="bf16")
    assert first_margin(on_ranks(ranks, train_on_rank, document, work.root)) == 0


def other_run(work: WorkDir) -> Path:
    """The same work folder with neither checkpoints nor metrics."""
    import shutil

    shutil.rmtree(work.checkpoints)
    work.metrics.unlink()
    return work.root


def assert_same_table(found: list[list[float]], expected: list[list[float]]) -> None:
    """Equal to float32's last digits: where the allocator puts a tensor may change the order of a sum."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_damaged_file_is_computed_again(work: WorkDir):
    document = a_job(maxSteps=1, globalBatchSize=PAIRS)
    on_ranks(1, train_on_rank, document, work.root)
    path, whole = reference(work), reference(work).read_bytes()
    [expected] = on_ranks(1, read, path)
    for damage in (whole[:-3], whole[:-1] + bytes([whole[-1] ^ 0x40]), b""):
        path.write_bytes(damage)
        run = on_ranks(1, train_on_rank, document, other_run(work))
        assert first_margin(run) == pytest.approx(0, abs=1e-6)
        [found] = on_ranks(1, read, path)
        assert_same_table(found, expected)


def test_a_lost_file_of_a_resumed_run_comes_from_the_initial_weights(work: WorkDir):
    document = a_job(maxSteps=6, globalBatchSize=PAIRS)
    [expected] = on_ranks(1, plain_training, document, work.model, some_pairs(PAIRS), 6)
    [stopped] = on_ranks(1, train_on_rank, document, work.root, 1, (0, 3))
    assert stopped["status"] == "Stopped"
    [before] = on_ranks(1, read, reference(work))
    reference(work).unlink()
    [resumed] = on_ranks(1, train_on_rank, document, work.root, 2)
    [after] = on_ranks(1, read, reference(work))
    assert_same_table(after, before)
    assert [line["step"] for line in resumed["steps"]] == [1, 2, 3, 4, 5, 6]
    for line, plain in zip(resumed["steps"], expected["steps"], strict=True):
        assert line["loss"] == pytest.approx(plain["loss"], abs=1e-4)


def keys() -> dict[str, str]:
    from dpo_operator.api.types import DPOJob
    from dpo_trainer.training.reference import reference_key

    def key(model: str = "m", dataset: str = "d", layout: Any = "shared", **training: Any) -> str:
        spec = DPOJob.model_validate(a_job(**training)).spec
        return reference_key(spec, model_digest=model, dataset_digest=dataset, layout=layout)

    return {
        "base": key(), "learning rate": key(learningRate=1e-6), "batch": key(globalBatchSize=64, microBatchSize=4),
        "model": key(model="n"), "data": key(dataset="e"), "precision": key(precision="bf16"), "layout": key(layout="off"),
    }  # fmt: skip


def test_the_key_is_what_the_log_probs_depend_on():
    [found] = on_ranks(1, keys)
    assert found["base"] == found["learning rate"] == found["batch"]
    assert len({found[name] for name in ("base", "model", "data", "precision", "layout")}) == 5


def test_the_models_digest_follows_weights_and_configuration(work: WorkDir):
    def digest() -> str:
        return on_ranks(1, model_digest_of, work.model)[0]

    before = digest()
    weights = work.model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    changed = digest()
    weights.write_bytes(content)
    assert digest() == before != changed
    config = work.model / "config.json"
    config.write_text(config.read_text().replace("10000.0", "20000.0"))
    assert digest() != before


def model_digest_of(folder: Path) -> str:
    from dpo_trainer.pretrained.digest import model_digest

    return model_digest(folder)
