"""Data for every method, and a loss and its gradient as this project's trainer computes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpo_operator.api.training import Budget
from dpo_trainer.batches.batch import Layout
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import VOCABULARY, a_job, make_model
from tests.numerics.ranks import on_ranks
from tests.numerics.trl_side import END

# Tokens that the policy of two_models was taught; it has come to expect less of all others.
_TAUGHT = (3, 60)


def examples(labels: str, *, level: bool = False, words: tuple[int, int] = _TAUGHT, seed: int = 5) -> PairDataset:
    """Random examples with prompts that differ.

    labels: one character for each example: "=" has both answers, "+" a desirable one, "-" an undesirable one.
    level: the parts of all examples have the same lengths. words: the first and the end of the tokens that are used.
    """
    rng = np.random.default_rng(seed)

    def tokens(longest: int, *, last: tuple[int, ...] = ()) -> np.ndarray:
        length = longest if level else int(rng.integers(1, longest + 1))
        return np.array([*rng.integers(*words, length), *last], dtype=np.int32)

    def example(row: int, label: str) -> TokenPair:
        prompt = np.concatenate([np.array([3 + row], dtype=np.int32), tokens(6)])
        chosen, rejected, none = tokens(8, last=(END,)), tokens(14, last=(END,)), np.zeros(0, dtype=np.int32)
        return TokenPair(prompt, none if label == "-" else chosen, none if label == "+" else rejected, row)

    return PairDataset.from_pairs(example(row, label) for row, label in enumerate(labels))


@dataclass(frozen=True)
class Arrangement:
    """How batches reach the model. chunk_rows: of the head's chunks; None: all rows at once."""

    layout: Layout = "shared"
    chunk_rows: int | None = None


def two_models(policy: Path, reference: Path, *, tied: bool = False) -> None:
    """A reference, and a policy that a few steps have taught half of the tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    make_model(reference, tied=tied)
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    ids = torch.randint(*_TAUGHT, (32, 16), generator=torch.Generator().manual_seed(1))
    ids[:, ::8] = END
    for _ in range(16):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(policy)


def losses_and_gradients(
    cases: dict[str, tuple[dict[str, Any], str]],
    data: dict[str, PairDataset],
    policy: Path,
    reference: Path,
    arrangements: Sequence[Arrangement] = (Arrangement(),),
) -> list[dict[str, dict[str, Any]]]:
    """Of each arrangement, and of each case (spec.method and the name of its data): "loss", "gradient" by parameter, "metrics" of a step.

    Everything goes the way of a run: examples, reference log-probs by an engine with the reference, the step's
    micro-batches (the last one incomplete) through the engine, ZeRO-3's gradient.
    """
    from dpo_operator.api.method import Method
    from dpo_operator.api.types import DPOJob
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.engine.engine import Engine
    from dpo_trainer.losses.objective import Objective
    from dpo_trainer.runtime.workdir import WorkDir
    from dpo_trainer.training.examples import open_examples
    from dpo_trainer.training.passes import logps_table

    world = join_world("cpu")
    works = {name: WorkDir(policy.parent / f"{name}-{world.rank}") for name in data}
    for name, pairs in data.items():
        pairs.save(works[name].train_data)
    spec = DPOJob.model_validate(a_job()).spec
    objectives = {name: Objective(Method.model_validate(method)) for name, (method, _) in cases.items()}
    opened = {name: open_examples(works[which], objectives[name])[0] for name, (_, which) in cases.items()}
    references: dict[Arrangement, dict[str, tuple[Any, Any]]] = {arrangement: {} for arrangement in arrangements}
    engine = Engine(spec, reference, world)
    for arrangement in arrangements:
        _arrange(engine, arrangement)
        for name, objective in objectives.items():
            if objective.needs_reference:
                opened[name].add_reference(lambda _, pairs: logps_table(engine, pairs, budget=Budget(10_000, 4)))
                references[arrangement][name] = (opened[name].reference, opened[name].mismatched_reference)
    del engine
    engine, found = Engine(spec, policy, world), []
    for arrangement in arrangements:
        _arrange(engine, arrangement)
        for name, tables in references[arrangement].items():
            opened[name].reference, opened[name].mismatched_reference = tables
        found.append({name: _loss_and_gradient(engine, objectives[name], opened[name]) for name in cases})
    return found


def _arrange(engine: Any, arrangement: Arrangement) -> None:
    assert engine.module.pack(arrangement.layout)
    engine.module.head.chunk_bytes = arrangement.chunk_rows and 4 * VOCABULARY * arrangement.chunk_rows


def _loss_and_gradient(engine: Any, objective: Any, examples: Any) -> dict[str, Any]:
    from deepspeed.utils import safe_get_full_grad

    from dpo_trainer.runtime.stop import StopRequest
    from dpo_trainer.training.step import forward_backward

    step = forward_backward(
        engine,
        objective,
        examples,
        np.arange(len(examples.data), dtype=np.int64),
        StopRequest(),
        budget=Budget(10_000, 3),
        kl_budget=Budget(10_000, 2),
        is_first=False,
    )
    gradient = {
        parameter.removeprefix("model."): safe_get_full_grad(p).numpy().copy()
        for parameter, p in engine.module.named_parameters()
    }
    engine.step(0.0)  # clears the gradient and changes nothing
    return {"loss": step.metrics["loss"], "gradient": gradient, "metrics": step.metrics}


def prepared(root: Path, train: str, evaluation: str, model: Callable[[Path], object] = make_model) -> WorkDir:
    """A work folder as prepare leaves it. train, evaluation: labels of their examples; model: writes one into a folder."""
    work = WorkDir(root)
    examples(train).save(work.train_data)
    examples(evaluation, seed=6).save(work.eval_data)
    on_ranks(1, model, work.model)
    return work
