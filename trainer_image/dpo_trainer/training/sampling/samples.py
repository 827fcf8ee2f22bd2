"""Answers of the policy to some fixed prompts, before training and at evaluations, with the answers of the reference.

The reference is the policy before its first update, for methods without a reference in their loss, too. Greedy answers change only when
the weights do; answers at temperature 1 show what greedy decoding hides, a policy that has drifted.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.model import AdapterType
from dpo_operator.api.training import Budget
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.batches.batch import collate
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.data.tokens.tokenization import load_tokenizer
from dpo_trainer.distributed.memory import free_cached
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.engine.engine import Engine
from dpo_trainer.model.adapters import without_trained
from dpo_trainer.model.drawing import Ids
from dpo_trainer.model.load import causal_lm_of
from dpo_trainer.pretrained.checks import end_tokens
from dpo_trainer.pretrained.files import read_json
from dpo_trainer.runtime.errors import TrainerError, first_line
from dpo_trainer.runtime.termination import is_out_of_memory
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.telemetry.metrics_file import Line, MetricsFile, read_metrics
from dpo_trainer.training.sampling.answers import Answer, figures
from dpo_trainer.training.sampling.generate import Drawn, generate, numbers
from dpo_trainer.training.sampling.prompts import first_prompts, shares
from dpo_trainer.training.sampling.sampling_time import SHARE, SamplingTime
from dpo_trainer.training.shortage import Shortage

# What a model or a tokenizer raises that can't do this. Never RuntimeError but for a lack of memory: that is how a lost peer shows.
_CAN_NOT = (TrainerError, OSError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError)

_NO_GENERATION = "the model can't generate"
# Tokens of the answer with which generation is tried.
_TRIED = 2
# Most tokens of an answer where each one takes a gather of all weights.
FEW = 32


@dataclass(frozen=True)
class _Decoder:
    """end: ids that end an answer. pairs: the prompts with what the data answers."""

    tokenizer: Any
    end: tuple[int, ...]
    pairs: tuple[TokenPair, ...]


class _Found(NamedTuple):
    """The answers to one prompt. logp, reference: log-probs of the draw, nats, under the policy and before its first update."""

    greedy: Ids
    drawn: Ids | None = None
    logp: float | None = None
    reference: float | None = None


class Samples:
    """Answers to the first distinct prompts of the evaluation pairs, written to samples.jsonl by rank 0.

    An error is logged once and ends the samples, not the run. It ends the attempt when one of several ranks has it amid the others'
    collectives, where they would wait for this one until their time-out.
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
        time: SamplingTime,
        shortage: Shortage,
        resumed_step: int,
    ) -> None:
        """data: the evaluation pairs. budget: of one batch on one rank. time: says when. resumed_step: later lines are cut."""
        self._engine, self._ranks, self._work, self._data = engine, ranks, work, data
        self._count, self._tokens = spec.evaluation.samples if data is not None else 0, spec.evaluation.sample_tokens
        self._budget, self._time, self._resumed_step = budget, time, resumed_step
        self._draws, self._seed = spec.diagnosis.enabled, spec.training.seed
        start = spec.model.adapter
        # The policy before its first update is still there, under a new adapter.
        is_new = spec.adapter.type is not AdapterType.NONE and (start is None or start.train != "same")
        self._scores = self._draws and is_new
        self._noted = False
        self._shortage, self._alone = shortage, False
        self._decoder: _Decoder | None = None
        self._file: MetricsFile | None = None
        self._reference: dict[str, Line] = {}  # lines of step 0 by prompt

    def take(
        self, step: int, telemetry: Telemetry, should_stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Answer the prompts and write the answers; those at step 0 are the reference's. Collective.

        should_stop: asked after each batch, the same answer on every rank; nothing is written then, and None returned.
        Returns figures of the answers, docs/metrics.md; none when they would take too much of the run's time.
        """
        if not self._count or not self._is_time(step, telemetry):
            return {}
        telemetry.activity("sampling answers")
        if self._decoder is None and not self._begin(telemetry):
            return {}
        assert self._decoder is not None
        began = time.monotonic()
        with self._weights(telemetry) as tokens:
            found, problem, stopped = self._generate(self._decoder, step, tokens, should_stop)
        if not self._agreed(problem, telemetry):
            return {}
        if stopped:
            return None
        answers = {int(number): _Found(*one) for part in self._ranks.gather(found) for number, one in part.items()}
        self._time.add(time.monotonic() - began)
        try:
            return self._ranks.run_on_rank_zero(lambda: self._write(step, answers))
        except TrainerError as error:
            self._agreed(_said(error), telemetry)
            return {}

    def _begin(self, telemetry: Telemetry) -> bool:
        """Open, and try the first prompt on every rank: what a model can't do shows on all of them at once. Collective."""
        problem = "an earlier attempt ran out of memory in them" if self._shortage.samples else ""
        try:
            self._decoder = self._open()
        except _CAN_NOT as error:
            problem = _said(error)
        if not self._agreed(problem, telemetry):
            return False
        assert self._decoder is not None
        self._engine.train(False)
        try:
            with self._weights(telemetry):
                self._answer(self._decoder, 0, [0], tokens=_TRIED)
        except Exception as error:
            if not _can_not(error):
                raise
            problem = f"{_NO_GENERATION}: {_said(error)}"
        finally:
            self._engine.train(True)
        return self._agreed(problem, telemetry)

    @contextmanager
    def _weights(self, telemetry: Telemetry) -> Iterator[int]:
        """Within this context every rank has all weights, if they fit; yields the most tokens of an answer. Collective."""
        self._alone = self._engine.can_hold_whole_weights()
        if self._alone:
            with self._engine.whole_weights():
                yield self._tokens
            return
        if self._tokens > FEW:
            text = (
                f"the whole model does not fit beside what each rank holds, so each token gathers it from all ranks; answers have at most {FEW} tokens "
                f"and not evaluation.sampleTokens {self._tokens}"
            )
            telemetry.warning("ShortSamples", text, once=True)
        yield min(self._tokens, FEW)

    def _is_time(self, step: int, telemetry: Telemetry) -> bool:
        """Whether there is time for answers, as rank 0 has it. Collective."""
        allowed = self._ranks.run_on_rank_zero(lambda: self._time.allows(step))
        if not allowed and not self._noted:
            self._noted = True
            telemetry.activity(
                f"no sample answers at step {step}: the last ones took {self._time.last:.0f} s, and all of them may take {SHARE:.0%} of "
                "the run's time; there are fewer of them, and again at the end"
            )
        return allowed

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
        pairs = first_prompts(self._data, self._count, longest=positions - self._tokens)
        if not pairs:
            raise ValueError(
                f"expected a prompt that leaves room for evaluation.sampleTokens = {self._tokens} tokens in the model's {positions}, "
                "found none; lower it"
            )
        return _Decoder(tokenizer, tuple(dict.fromkeys(end)), tuple(pairs))

    def _generate(
        self, decoder: _Decoder, step: int, tokens: int, should_stop: Callable[[], bool]
    ) -> tuple[dict[int, _Found], str, bool]:
        """This rank's share of the answers by number of the prompt, what kept it from them, and whether to stop. Collective.

        Raises TrainerError where other ranks take part in each token and would wait for this one.
        """
        engine, found, problem = self._engine, dict[int, _Found](), ""
        world, longest = engine.world, max(len(pair.prompt) for pair in decoder.pairs)
        rows = (2 if self._draws else 1) * (longest + tokens)
        size = min(self._budget.pairs or len(decoder.pairs), max(1, self._budget.tokens // rows))
        everything = np.arange(len(decoder.pairs), dtype=np.int64)
        engine.train(False)
        try:
            for group in shares(everything, rank=world.rank, world_size=world.world_size, size=size):
                # A rank that has no prompt left answers the first one again, to take part in the collectives.
                asked = group.tolist() or [0]
                try:
                    answers = [] if problem else self._answer(decoder, step, asked, tokens=tokens)
                    found |= dict(zip(group.tolist(), answers, strict=False))
                except Exception as error:
                    problem = self._problem(error, step)
                if should_stop():
                    return {}, problem, True
        finally:
            engine.train(True)
        if problem:
            free_cached()
        return found, problem, False

    def _problem(self, error: Exception, step: int) -> str:
        """What kept this rank from answers, where it does so alone; the others go on. Raises the error, or TrainerError."""
        if not _can_not(error):
            raise error
        if not self._alone:
            if is_out_of_memory(error):
                self._shortage.no_samples()
            text = f"sample answers at step {step}: {_said(error)}. If that comes again, set evaluation.samples 0"
            raise TrainerError(ExitCode.INTERNAL_ERROR, text) from error
        return _said(error) if is_out_of_memory(error) else f"{_NO_GENERATION}: {_said(error)}"

    def _answer(self, decoder: _Decoder, step: int, asked: list[int], *, tokens: int) -> list[_Found]:
        """Answers to some prompts, by their numbers. Collective. tokens: the most of an answer."""
        prompts = [decoder.pairs[number].prompt.tolist() for number in asked]
        by = numbers(self._seed, step, asked, tokens) if self._draws else None
        greedy, drawn = generate(self._engine, prompts, tokens=tokens, end=decoder.end, drawn_by=by, alone=self._alone)
        if not drawn:
            return [_Found(ids) for ids in greedy]
        scores = self._under_reference(prompts, drawn) if self._scores else [None] * len(asked)
        return [_Found(ids, draw.ids, draw.logp, score) for ids, draw, score in zip(greedy, drawn, scores, strict=True)]

    def _under_reference(self, prompts: Sequence[Ids], drawn: Sequence[Drawn]) -> list[float]:
        """Log-probs of drawn answers under the policy before its first update, nats. Collective."""
        empty = np.zeros(0, dtype=np.int32)
        pairs = PairDataset.from_pairs(
            TokenPair(np.array(prompt, dtype=np.int32), np.array(draw.ids, dtype=np.int32), empty, 0)
            for prompt, draw in zip(prompts, drawn, strict=True)
        )
        batch = collate(pairs, range(len(pairs)), layout=self._engine.module.layout)
        with without_trained(self._engine.module.model), torch.no_grad():
            found: list[float] = self._engine.score(batch).answers[:, 0, 0].tolist()
        return found

    def _write(self, step: int, answers: dict[int, _Found]) -> dict[str, float]:
        """Add a line for each prompt; figures of what was written. On rank 0 alone. Raises OSError."""
        assert self._decoder is not None
        if self._file is None:
            self._file = MetricsFile(self._work.samples, resumed_step=self._resumed_step, key=_key)
            first = (line for line in read_metrics(self._work.samples) if line["step"] == 0)
            self._reference = {str(line.get("prompt")): line for line in first}
        decode, kinds = self._decoder.tokenizer.decode, ("policy", "policy_t1") if self._draws else ("policy",)
        ends = [[token] for token in self._decoder.end]
        made: dict[str, list[Answer]] = {kind: [] for kind in kinds}
        before: dict[str, list[Line]] = {kind: [] for kind in kinds}
        for number, pair in enumerate(self._decoder.pairs):
            prompt, fields = decode(pair.prompt.tolist()), Line()
            for kind, ids in zip(kinds, (answers[number].greedy, answers[number].drawn or []), strict=False):
                text = decode(ids, skip_special_tokens=True)
                made[kind].append(Answer(ids, text, ids[-1:] in ends))
                fields |= {kind: text, f"{kind}_tokens": len(ids)}
            if step == 0:
                self._reference[prompt] = fields
            reference = self._reference.get(prompt, {})
            for kind in kinds:
                if kind in reference:
                    before[kind].append(reference)
                name = kind.replace("policy", "reference")
                fields |= {name: reference.get(kind), f"{name}_tokens": reference.get(f"{kind}_tokens")}
            chosen = decode(pair.chosen.tolist(), skip_special_tokens=True) if len(pair.chosen) else None
            self._file.write({
                "step": step, "prompt": prompt, **fields, "chosen": chosen, "prompt_tokens": len(pair.prompt),
                "chosen_tokens": len(pair.chosen) or None,
            })  # fmt: skip
        self._file.sync()
        return self._figures(step, made, before, answers)

    def _figures(
        self, step: int, made: dict[str, list[Answer]], before: dict[str, list[Line]], answers: dict[int, _Found]
    ) -> dict[str, float]:
        """What answers show. made, before: by kind, with the lines of the reference's answers to the same prompts as far as known."""
        count = len(answers)
        found = {"generation_tokens/policy": sum(len(answer.ids) for answer in made["policy"]) / count}
        if len(before["policy"]) == count:
            found["generation_tokens/reference"] = sum(line["policy_tokens"] for line in before["policy"]) / count
        if not self._draws:
            return found
        found["samples/prompts"] = float(count)
        for kind, name in (("policy", "greedy"), ("policy_t1", "t1")):
            texts = [str(line[kind]) for line in before[kind]] if step else []
            found |= {f"samples/{name}/{key}": value for key, value in figures(made[kind], texts).items()}
        tokens = sum(len(answer.ids) for answer in made["policy_t1"])
        own = sum(one.logp or 0.0 for one in answers.values())
        found["samples/t1/own_nll"] = -own / tokens
        if self._scores:
            reference = sum(one.reference or 0.0 for one in answers.values())
            found["samples/t1/reference_nll"] = -reference / tokens
            found["samples/t1/logratio_per_token"] = (own - reference) / tokens
            found["samples/t1/kl"] = (own - reference) / count
        return found


def _key(line: Line) -> tuple[int, str]:
    return line["step"], str(line.get("prompt"))


def _can_not(error: Exception) -> bool:
    return isinstance(error, _CAN_NOT) or is_out_of_memory(error)


def _said(error: Exception) -> str:
    return first_line(error) or type(error).__name__
