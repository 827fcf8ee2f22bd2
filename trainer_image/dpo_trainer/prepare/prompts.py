"""The prompts of a job with rounds: read from their own source, or taken from the training pairs, and divided between the rounds."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

from dpo_operator.api.data import Dataset
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.data.asking import Asked, different, read_prompts
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.data.prompts import Prompt, PromptSet, Shares
from dpo_trainer.data.rows import Rows
from dpo_trainer.data.tally import Tally, too_many_bad
from dpo_trainer.data.tokens.tokenization import PairTokenizer
from dpo_trainer.prepare.record import PromptsRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundPrompts:
    """Prompts of all rounds, and what prepared.json keeps of them."""

    made: PromptSet
    record: PromptsRecord


def collector(spec: DPOJobSpec) -> Asked | None:
    """What collects the prompts of the training pairs; None where they are not needed."""
    if spec.iterative is None or spec.iterative.prompts is not None:
        return None
    return Asked(_answer_column(spec))


def source(spec: DPOJobSpec) -> Dataset | None:
    """Where the prompts are read from as a source of data; None where they are those of the training pairs."""
    if spec.iterative is None or (wanted := spec.iterative.prompts) is None:
        return None
    columns = spec.data.train.columns
    if wanted.column is not None:
        columns = columns.model_copy(update={"prompt": wanted.column})
    return Dataset(
        source=wanted.source,
        split=wanted.split,
        config=wanted.config,
        revision=wanted.revision,
        limit=wanted.limit,
        columns=columns,
    )


def answer_columns(spec: DPOJobSpec) -> set[str]:
    """Columns that are read besides those of the prompt."""
    column = _answer_column(spec)
    return set() if column is None else {column}


def read(spec: DPOJobSpec, data: Dataset, rows: Rows, tokenizer: PairTokenizer, dropped: IO[str]) -> list[Prompt]:
    """Prompts of their own source. dropped: rows without one, as JSON lines. Raises TrainerError BAD_DATASET for too many of them."""
    tally = Tally("prompts", rows, dropped)
    found = list(
        read_prompts(rows, data.columns, tokenizer, tally, answer_column=_answer_column(spec), limit=data.limit)
    )
    limit = spec.data.filters.max_bad_rows
    if tally.bad > limit * tally.rows:
        raise too_many_bad("prompts", limit, (), tally)
    return found


def divide(
    spec: DPOJobSpec,
    found: Iterable[Prompt] | None,
    evaluation: PairDataset | None,
    context: int | None,
    *,
    plain_evaluation: bool = False,
) -> RoundPrompts | None:
    """Each prompt once, divided between the rounds; None without rounds. found: prompts. context: tokens that the model reads. plain_evaluation: see PromptsRecord.

    Raises TrainerError BAD_DATASET when there are too few.
    """
    if spec.iterative is None or found is None:
        return None
    rounds = spec.iterative
    longest = min(spec.data.max_length, context or spec.data.max_length) - rounds.generation.max_new_tokens
    held_out = {evaluation[i].prompt.tobytes() for i in range(len(evaluation))} if evaluation is not None else set()
    prompts, left_out = different(found, longest=longest, without=held_out)
    if left_out:
        log.info("prompts left out: %s", ", ".join(f"{reason} {count}" for reason, count in left_out.items()))
    shares = Shares(rounds.rounds, rounds.prompts_per_round, rounds.win_rate.prompts, rounds.reuse_prompts)
    made = PromptSet.of(prompts, shares, spec.training.seed)
    log.info("%d prompts: %d a round, %d for win rates", len(made), made.per_round, len(made.compared))
    record = PromptsRecord(
        digest=made.digest,
        prompts=len(made),
        per_round=made.per_round,
        compared=len(made.compared),
        left_out=left_out,
        plain_evaluation=plain_evaluation,
    )
    return RoundPrompts(made, record)


def _answer_column(spec: DPOJobSpec) -> str | None:
    builtin = spec.iterative.judge.builtin if spec.iterative is not None else None
    return builtin.answer_column if builtin is not None else None
