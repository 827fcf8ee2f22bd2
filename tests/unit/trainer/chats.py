"""Chat pairs for tests: an answer is a message of the assistant, and mostly only text."""

from typing import Any

from dpo_trainer.data.formats.pairs import ChatPair, Message


def chat_pair(prompt: tuple[Message, ...], chosen: str | None, rejected: str | None, *others: Any) -> ChatPair:
    """A pair of which the answers are texts."""
    answers = [None if text is None else Message("assistant", text) for text in (chosen, rejected)]
    return ChatPair(prompt, answers[0], answers[1], *others)
