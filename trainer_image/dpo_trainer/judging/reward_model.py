"""The judge that is a reward model: scores answers as the method reward-model trains them, token for token."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpo_operator.api.data import Template
from dpo_operator.api.iterative import RewardModel as Settings
from dpo_trainer.batches.batch import collate
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.data.formats import Pair, Rejection
from dpo_trainer.data.formats.chats import conversation
from dpo_trainer.data.formats.pairs import ChatPair, Message, TextPair, Unusable
from dpo_trainer.data.tokens.tokenization import PairTokenizer, load_tokenizer
from dpo_trainer.data.tokens.truncation import Limits
from dpo_trainer.distributed.world import choose_device
from dpo_trainer.judging.contract import Judged, Question, Spent, by_scores
from dpo_trainer.model.load import load_whole
from dpo_trainer.model.reward import RewardModel
from dpo_trainer.pretrained import checks, reward
from dpo_trainer.runtime.errors import input_not_found, invalid_configuration

_LABEL = "spec.iterative.judge.rewardModel"
_NOTHING = np.zeros(0, dtype=np.int32)
# Difference of two ways to the same score, relative and absolute, by dtype: the order of sums, and bfloat16's 8 bits.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class RewardModelJudge:
    """Scores answers by a sequence classifier with one output, in its own chat template or as plain text.

    folder: the model that prepare fetched. template: spec.data.template.
    Chat messages go through the model's chat template; a prompt that is text goes before the answer as it is, also when there is a template.
    Raises TrainerError: INPUT_NOT_FOUND, INVALID_CONFIGURATION for what is no reward model, NO_ACCELERATOR.
    """

    scores = True
    exhausted = False
    spent = Spent()

    def __init__(self, settings: Settings, folder: Path, template: Template) -> None:
        if not (folder / "config.json").is_file():
            raise input_not_found(f"{folder}: expected the reward model that prepare fetched; run prepare again")
        self._settings = settings
        config = reward.check_config(folder, _LABEL)
        loaded = load_tokenizer(folder, _LABEL)
        limits = Limits(settings.max_length, None, "drop")
        self._tokenizer = PairTokenizer(loaded, limits, checks.end_tokens(folder, config, _LABEL), template)
        self._device = choose_device("auto" if settings.gpus else "cpu", local_rank=0)
        self._model = _load(folder, self._device)
        self._vocabulary = checks.vocabulary_size(config)

    def judge(self, questions: Sequence[Question], alive: Callable[[], None]) -> list[Judged]:
        """Score all answers. One that is empty, or too long together with its prompt, gets no score."""
        pairs = [
            (number, as_pair(question, answer))
            for number, question in enumerate(questions)
            for answer in question.answers
        ]
        found = [one for _, one in self._tokenizer.run(pairs)]
        there = [number for number, one in enumerate(found) if isinstance(one, TokenPair)]
        # Answers of one length together: less padding.
        there.sort(key=lambda number: _length(found[number]))
        scores: list[float | None] = [None] * len(found)
        for start in range(0, len(there), self._settings.micro_batch_size):
            batch = there[start : start + self._settings.micro_batch_size]
            values = self._score([one for number in batch if isinstance(one := found[number], TokenPair)])
            for number, value in zip(batch, values, strict=True):
                scores[number] = value
            alive()
        judged, at = [], 0
        for question in questions:
            count = len(question.answers)
            judged.append(by_scores(question, scores[at : at + count]))
            at += count
        return judged

    def close(self) -> None:
        """Give the memory of the weights back."""
        del self._model

    @torch.no_grad()
    def _score(self, pairs: list[TokenPair]) -> list[float]:
        data = PairDataset.from_pairs(pairs)
        if self._vocabulary is not None and data.largest_token >= self._vocabulary:
            raise invalid_configuration(
                f"{_LABEL}: its tokenizer gives token {data.largest_token}, and it has embeddings for {self._vocabulary} (vocab_size in "
                "config.json); the tokenizer is not this model's"
            )
        batch = collate(data, range(len(data))).to(self._device)
        rewards, _ = self._model(batch)
        scores: list[float] = rewards[::2, 0].tolist()
        return scores


def _load(folder: Path, device: torch.device) -> RewardModel:
    # On CPUs 16-bit arithmetic is slow, where there is any.
    dtype: torch.dtype | str = torch.float32 if device.type == "cpu" else "auto"
    try:
        model, missing = load_whole(folder, dtype, classifier=True)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise invalid_configuration(f"{_LABEL}: the model can't be loaded: {error}") from error
    if missing:
        raise invalid_configuration(
            f"{_LABEL}: expected weights for every parameter, found none for {len(missing)}, such as {min(missing)}"
        )
    scorer = RewardModel(model.to(device)).eval()
    _check_scores(scorer, model.dtype, device)
    return scorer


@torch.no_grad()
def _check_scores(scorer: RewardModel, dtype: torch.dtype, device: torch.device) -> None:
    """Compare the scores of two answers in one batch with those that transformers gives each alone."""
    pairs = [TokenPair(_ids(3), _ids(length), _NOTHING, 0) for length in (2, 5)]
    batch = collate(PairDataset.from_pairs(pairs), range(2)).to(device)
    found, own = scorer(batch)[0][::2, 0], scorer(batch, whole_logits=True)[0][::2, 0]
    tolerance = _TOLERANCE.get(dtype, 1e-4)
    if not torch.allclose(found, own, rtol=tolerance, atol=tolerance):
        raise invalid_configuration(
            f"{_LABEL}: expected the score of the last token's state, {own.tolist()} by transformers, found {found.tolist()}; this "
            "architecture's classifier does more, or the weights are not finite; use another model"
        )


def _ids(count: int) -> Any:
    return np.arange(count, dtype=np.int32)


def as_pair(question: Question, answer: str) -> Pair:
    """An answer as the data would have it: the other one of the pair is missing."""
    if isinstance(question.prompt, str):
        return TextPair(question.prompt, answer, None)
    try:
        messages = conversation(question.prompt, "prompt", "user")
    except Unusable as error:
        raise invalid_configuration(f"spec.iterative.prompts: {error.rejection.detail}") from error
    return ChatPair(messages, Message("assistant", answer), None, tools=question.tools)


def _length(found: TokenPair | Rejection) -> int:
    return len(found.prompt) + len(found.chosen) if isinstance(found, TokenPair) else 0
