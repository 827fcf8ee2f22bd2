"""The engine `transformers`: a whole model on one device that answers many prompts at once, drawn by numbers of engine.py."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.data.dataset import TokenIds
from dpo_trainer.distributed.memory import free_cached
from dpo_trainer.distributed.world import choose_device
from dpo_trainer.model.drawing import Draw, decode
from dpo_trainer.rounds.engines.engine import numbers
from dpo_trainer.rounds.engines.policy import load_policy
from dpo_trainer.rounds.units import Answer, Sampling
from dpo_trainer.runtime.termination import is_out_of_memory
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry

# Answers that are generated together, where the job does not say.
BATCH = 64


class TransformersEngines:
    """Loads policies on this process's device. batch: most answers at once; what one engine learns of the memory holds for the next."""

    def __init__(self, spec: DPOJobSpec, work: WorkDir, telemetry: Telemetry) -> None:
        """work: the round's leg."""
        assert spec.iterative is not None
        self._spec, self._work, self._telemetry = spec, work, telemetry
        self._device = choose_device(spec.training.device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
        self._batch = spec.iterative.generation.micro_batch_size or BATCH
        _settle(self._device)

    def open(self, number: int) -> "TransformersEngine":
        """See Engines."""
        free_cached()
        return TransformersEngine(
            load_policy(self._spec, self._work, number, self._device),
            self._device,
            self._spec.training.seed,
            batch=self._batch,
            alive=self._telemetry.alive,
            fewer=self._fewer,
        )

    def _fewer(self, batch: int, text: str) -> None:
        self._batch = batch
        self._telemetry.warning("LessAtOnce", text)


def _settle(device: torch.device) -> None:
    """Settings of the process that must come before its first product of matrices."""
    # Otherwise DeepSpeed, which transformers may import, detects every vendor's module.
    os.environ["DS_ACCELERATOR"] = device.type
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        # By default MKL multiplies narrow matrices in an order that depends on where they lie in memory (docs/checkpoints.md).
        os.environ.setdefault("MKL_CBWR", "AUTO")


class TransformersEngine:
    """A model that answers. batch: most answers that are generated together; halved for good when memory runs out."""

    def __init__(
        self,
        model: Any,
        device: torch.device,
        seed: int,
        *,
        batch: int,
        alive: Callable[[], None] = lambda: None,
        fewer: Callable[[int, str], None] = lambda *_: None,
    ) -> None:
        """model: of transformers or PEFT, in evaluation mode. alive: called for each token. fewer: called with the smaller batch and a sentence."""
        self._model, self._device, self._seed = model, device, seed
        self._alive, self._fewer = alive, fewer
        self.batch = batch

    def answer(
        self, prompts: Sequence[TokenIds], places: Sequence[int], samples: int, sampling: Sampling, round_number: int
    ) -> list[tuple[Answer, ...]]:
        """See Engine."""
        wanted = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(samples)]
        # By length, so that little is padded; the order is the same whoever makes the unit.
        order = sorted(range(len(wanted)), key=lambda i: len(prompts[wanted[i][0]]))
        found: dict[int, Answer] = {}
        start = 0
        while start < len(order):
            some = order[start : start + self.batch]
            asked = [prompts[wanted[i][0]] for i in some]
            by = np.stack(
                [
                    numbers(self._seed, round_number, places[wanted[i][0]], wanted[i][1], sampling.max_new_tokens)
                    for i in some
                ]
            )
            try:
                made = self._generate(asked, by, sampling)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or len(some) == 1:
                    raise
                made = None
            if made is None:
                # Only now: the error held the tensors of the frames that it came through.
                free_cached()
                self.batch = max(1, len(some) // 2)
                self._fewer(
                    self.batch,
                    f"memory ran out with {len(some)} answers at once; from now on {self.batch} are generated together. Set "
                    f"iterative.generation.microBatchSize to {self.batch} to begin so",
                )
                continue
            found |= dict(zip(some, made, strict=True))
            start += len(some)
        return [tuple(found[i * samples + j] for j in range(samples)) for i in range(len(prompts))]

    def logps(self, prompts: Sequence[TokenIds], answers: Sequence[TokenIds]) -> np.ndarray:
        """See Engine."""
        batch = max(1, self.batch // 4)
        return answer_logps(self._model, prompts, answers, self._device, batch=batch, alive=self._alive)

    def close(self) -> None:
        """See Engine."""
        self._model = None
        free_cached()

    def _generate(self, prompts: Sequence[TokenIds], by: np.ndarray, sampling: Sampling) -> list[Answer]:
        draw = Draw(
            torch.from_numpy(by).to(self._device),
            first=max(map(len, prompts)),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            after_each=self._alive,
        )
        asked = [prompt.astype(np.int64) for prompt in prompts]
        with torch.no_grad():
            ids = decode(
                self._model,
                asked,
                tokens=sampling.max_new_tokens,
                end=sampling.end,
                device=self._device,
                processor=draw,
            )
        logps = torch.stack(draw.logps, dim=1).float().cpu().numpy()
        return [
            Answer(np.array(answer, dtype=np.int32), logps[row, : len(answer)], answer[-1] in sampling.end)
            for row, answer in enumerate(ids)
        ]


def answer_logps(
    model: Any,
    prompts: Sequence[TokenIds],
    answers: Sequence[TokenIds],
    device: torch.device,
    *,
    batch: int,
    alive: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Log-probs of answers under a model: float64 [answers], nats. batch: answers of one pass; halved when memory runs out."""
    found = np.zeros(len(answers))
    order = sorted(range(len(answers)), key=lambda i: len(prompts[i]) + len(answers[i]))
    start = 0
    while start < len(order):
        some = order[start : start + batch]
        try:
            made = _logps(model, [prompts[i] for i in some], [answers[i] for i in some], device)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or len(some) == 1:
                raise
            made = None
        if made is None:
            free_cached()
            batch = max(1, len(some) // 2)
            continue
        found[some] = made
        start += len(some)
        alive()
    return found


def _logps(model: Any, prompts: Sequence[TokenIds], answers: Sequence[TokenIds], device: torch.device) -> list[float]:
    """Log-probs of some answers, in one pass."""
    rows = [np.concatenate(pair).astype(np.int64) for pair in zip(prompts, answers, strict=True)]
    # Padded on the right: an answer's token never looks ahead to the padding.
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.from_numpy(tokens)
    ids = ids.to(device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    found = []
    for row, (prompt, tokens) in enumerate(zip(prompts, rows, strict=True)):
        first, last = len(prompt), len(tokens)
        predicted = logits[row, first - 1 : last - 1].float().log_softmax(-1)
        found.append(predicted.gather(1, ids[row, first:last, None]).double().sum().item())
    return found
