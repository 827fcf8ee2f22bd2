"""Answers of the policy to a few fixed prompts at each evaluation, with the answers of the reference.

The reference is the policy before its first update, for methods without a reference in their loss, too. Decoding is greedy and
nothing else (no repetition penalty, no temperature, whatever the model's generation_config.json says), so answers change only
when the weights do, and no random number is used.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dpo_operator.api.training import Budget
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.batches.sampler import Indices
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.data.tokens.tokenization import load_tokenizer
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.engine.engine import Engine
from dpo_trainer.model.load import causal_lm_of
from dpo_trainer.pretrained.checks import end_tokens
from dpo_trainer.pretrained.files import read_json
from dpo_trainer.runtime.errors import TrainerError, first_line
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.telemetry.metrics_file import Line, MetricsFile, read_metrics

Ids = list[int]
# What a model or a tokenizer raises that can't do this. Never RuntimeError: that is how a lost peer shows.
_CAN_NOT = (TrainerError, OSError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError)


@dataclass(frozen=True)
class _Decoder:
    """end: ids that end an answer. pairs: the prompts with what the data answers."""

    tokenizer: Any
    end: tuple[int, ...]
    pairs: tuple[TokenPair, ...]


class Samples:
    """Greedy answers to the first distinct prompts of the evaluation pairs, written to samples.jsonl by rank 0.

    An error is logged once and ends the samples, not the run.
    """

    def __init__(
        self,
        engine: Engine,
        ranks: Ranks,
        work: WorkDir,
        spec: DPOJobSpec,
        data: PairDataset | None,
        *,
        budget: Budget,
        resumed_step: int,
    ) -> None:
        """data: the evaluation pairs. budget: of one batch on one rank. resumed_step: later lines are cut."""
        self._engine, self._ranks, self._work, self._data = engine, ranks, work, data
        self._count, self._tokens = spec.evaluation.samples if data is not None else 0, spec.evaluation.sample_tokens
        self._budget, self._resumed_step = budget, resumed_step
        self._decoder: _Decoder | None = None
        self._file: MetricsFile | None = None
        self._reference: dict[str, Line] = {}

    def take(
        self, step: int, telemetry: Telemetry, should_stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Answer the prompts and write the answers; those at step 0 are the reference's. Collective.

        should_stop: asked after each batch, the same answer on every rank; nothing is written then, and None returned.
        Returns mean tokens of the answers: generation_tokens/policy and, where known, generation_tokens/reference.
        """
        if not self._count:
            return {}
        telemetry.activity("sampling answers")
        problem, found, stopped = "", None, False
        try:
            self._decoder = self._decoder or self._open()
        except _CAN_NOT as error:
            problem = _said(error)
        if not self._agreed(problem, telemetry):
            return {}
        assert self._decoder is not None
        try:
            found, stopped = self._generate(self._decoder, should_stop)
        except _CAN_NOT as error:
            problem = f"the model can't generate: {_said(error)}"
        if not self._agreed(problem, telemetry):
            return {}
        if stopped:
            return None
        answers = {int(number): ids for part in self._ranks.gather(found) for number, ids in part.items()}
        try:
            return self._ranks.run_on_rank_zero(lambda: self._write(step, answers))
        except TrainerError as error:
            self._agreed(_said(error), telemetry)
            return {}

    def _agreed(self, problem: str, telemetry: Telemetry) -> bool:
        """Whether no rank has a problem; one ends the samples on all of them. Collective."""
        problems = [text for text in self._ranks.gather(problem) if text]
        if problems:
            self._count = 0
            telemetry.warning("NoSamples", f"no sample answers are written: {problems[0]}", once=True)
        return not problems

    def _open(self) -> _Decoder:
        """Tokenizer and prompts. Raises what _CAN_NOT lists."""
        model = causal_lm_of(self._engine.module.model)
        if not model.can_generate():
            raise TypeError(f"{type(model).__name__} can't generate")
        tokenizer = load_tokenizer(self._work.model, "spec.model")
        config = read_json(self._work.model / "config.json", "spec.model")
        end = end_tokens(self._work.model, config, "spec.model")
        if tokenizer.eos_token_id is not None:
            end.append(tokenizer.eos_token_id)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
        assert self._data is not None
        pairs = _first_prompts(self._data, self._count, longest=positions - self._tokens)
        if not pairs:
            raise ValueError(
                f"expected a prompt that leaves room for evaluation.sampleTokens = {self._tokens} tokens in the model's {positions}, "
                "found none; lower it"
            )
        return _Decoder(tokenizer, tuple(dict.fromkeys(end)), tuple(pairs))

    def _generate(self, decoder: _Decoder, should_stop: Callable[[], bool]) -> tuple[dict[int, Ids], bool]:
        """This rank's share of the answers by number of the prompt, and whether to stop. Collective."""
        engine, found = self._engine, dict[int, Ids]()
        world, longest = engine.world, max(len(pair.prompt) for pair in decoder.pairs)
        size = min(self._budget.pairs or len(decoder.pairs), max(1, self._budget.tokens // (longest + self._tokens)))
        everything = np.arange(len(decoder.pairs), dtype=np.int64)
        engine.train(False)
        try:
            for group in shares(everything, rank=world.rank, world_size=world.world_size, size=size):
                # A rank that has no prompt left answers the first one again, to take part in the collectives.
                prompts = [decoder.pairs[number].prompt.tolist() for number in (group.tolist() or [0])]
                answers = greedy_answers(engine, prompts, tokens=self._tokens, end=decoder.end)
                found.update(zip(group.tolist(), answers, strict=False))
                if should_stop():
                    return {}, True
        finally:
            engine.train(True)
        return found, False

    def _write(self, step: int, answers: dict[int, Ids]) -> dict[str, float]:
        """Add a line for each prompt; the means of what was written. On rank 0 alone. Raises OSError."""
        assert self._decoder is not None
        if self._file is None:
            self._file = MetricsFile(self._work.samples, resumed_step=self._resumed_step, key=_key)
            before = (line for line in read_metrics(self._work.samples) if line["step"] == 0)
            self._reference = {str(line.get("prompt")): line for line in before}
        decode = self._decoder.tokenizer.decode
        known: list[int | None] = []
        for number, pair in enumerate(self._decoder.pairs):
            prompt, ids = decode(pair.prompt.tolist()), answers[number]
            policy = {"policy": decode(ids, skip_special_tokens=True), "policy_tokens": len(ids)}
            if step == 0:
                self._reference[prompt] = policy
            reference = self._reference.get(prompt, {})
            known.append(reference.get("policy_tokens"))
            chosen = decode(pair.chosen.tolist(), skip_special_tokens=True) if len(pair.chosen) else None
            self._file.write({
                "step": step, "prompt": prompt, "reference": reference.get("policy"), **policy, "chosen": chosen,
                "prompt_tokens": len(pair.prompt), "reference_tokens": reference.get("policy_tokens"),
                "chosen_tokens": len(pair.chosen) or None,
            })  # fmt: skip
        self._file.sync()
        means = {"generation_tokens/policy": sum(map(len, answers.values())) / len(answers)}
        if None not in known:
            means["generation_tokens/reference"] = sum(filter(None, known)) / len(known)
        return means


def greedy_answers(engine: Engine, prompts: list[Ids], *, tokens: int, end: tuple[int, ...]) -> list[Ids]:
    """The most likely next token, again and again: token ids of each answer, with the id that ended it. Collective.

    prompts: token ids, at least one prompt on every rank; each rank may have its own, and other numbers of them. tokens: the most
        of an answer. end: ids that end one.
    The engine must be in evaluation mode; the model is left as it was.
    """
    from transformers import GenerationConfig

    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        # Padded on the left: each answer goes on where its prompt ends.
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    greedy = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=list(end) or None,
        pad_token_id=0,
    )
    model, device = causal_lm_of(engine.module.model), engine.world.device
    with _settings_replaced(model, greedy):
        # synced_gpus: all ranks go on until the last one's answer is finished, because each token gathers the weights.
        whole = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=greedy,
            synced_gpus=engine.world.world_size > 1,
        )
    return [_until_end(row, end) for row in whole[:, longest:].tolist()]


@contextmanager
def _settings_replaced(model: Any, settings: Any) -> Iterator[None]:
    """Keep the model's own generation settings from filling in what ours leave open."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def _until_end(answer: Ids, end: tuple[int, ...]) -> Ids:
    """What follows the first id that ends the answer is padding."""
    for number, token in enumerate(answer, start=1):
        if token in end:
            return answer[:number]
    return answer


def _first_prompts(data: PairDataset, count: int, *, longest: float) -> list[TokenPair]:
    """The first pairs with a prompt of their own that is not too long."""
    found: dict[bytes, TokenPair] = {}
    for index in range(len(data)):
        if len(found) == count:
            break
        pair = data[index]
        if len(pair.prompt) <= longest:
            found.setdefault(pair.prompt.tobytes(), pair)
    return list(found.values())


def _key(line: Line) -> tuple[int, str]:
    return line["step"], str(line.get("prompt"))


def _said(error: Exception) -> str:
    return first_line(error) or type(error).__name__


def shares(indices: Indices, *, rank: int, world_size: int, size: int) -> list[Indices]:
    """One rank's share of some prompts, in groups of at most `size`.

    Every rank gets a list of the same length, because ZeRO-3's gathers are collective: a rank with fewer groups gets
    empty ones at the end, for which the caller runs a dummy.
    """
    mine = indices[rank::world_size]
    groups = math.ceil(math.ceil(len(indices) / world_size) / size)
    return [mine[i * size : (i + 1) * size] for i in range(groups)]
