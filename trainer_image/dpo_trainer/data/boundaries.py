"""Two common mistakes at the boundary between prompt and answer in plain text."""

from dpo_trainer.data.formats import Pair
from dpo_trainer.data.formats.pairs import TextPair

# An answer may begin with a shorter prompt by chance: "Hello" and "Hello! How can I help?".
REPEATED_CHARACTERS = 16


def is_unseparated(pair: Pair) -> bool:
    """Whether nothing separates the prompt's last word from the first word of every answer: "What is it?It is …".

    Checked for Latin letters and digits only: other scripts need no space, and "Answer:" or "[/INST]" may be intended.
    """
    if not isinstance(pair, TextPair):
        return False
    last = pair.prompt[-1]
    ends = last.isascii() and (last.isalnum() or last in ".?!")
    return ends and all(answer[0].isascii() and answer[0].isalnum() for answer in _answers(pair))


def repeats_prompt(pair: Pair) -> bool:
    """Whether every answer begins with the whole prompt, so that the model would read it twice."""
    if not isinstance(pair, TextPair) or len(prompt := pair.prompt.strip()) < REPEATED_CHARACTERS:
        return False
    return all(answer.lstrip().startswith(prompt) for answer in _answers(pair))


def _answers(pair: TextPair) -> list[str]:
    return [answer for answer in (pair.chosen, pair.rejected) if answer is not None]
