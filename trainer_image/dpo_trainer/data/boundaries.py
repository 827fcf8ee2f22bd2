"""What stands where the prompt ends and the answer begins, in plain text: two slips that no token shows."""

from dpo_trainer.data.formats import Pair, TextPair

# A shorter prompt may begin an answer by chance: "Hello" and "Hello! How can I help?".
REPEATED_CHARACTERS = 16


def is_glued(pair: Pair) -> bool:
    """Whether every answer's first word follows the prompt's last one with nothing between: "What is it?It is …".

    Latin letters and digits alone: other scripts need no space, and marks such as "Answer:" or "[/INST]" may be meant.
    """
    if not isinstance(pair, TextPair):
        return False
    last = pair.prompt[-1]
    ends = last.isascii() and (last.isalnum() or last in ".?!")
    return ends and all(answer[0].isascii() and answer[0].isalnum() for answer in _answers(pair))


def is_repeated(pair: Pair) -> bool:
    """Whether every answer begins with the whole prompt, so that the model would read it twice."""
    prompt = pair.prompt.strip() if isinstance(pair, TextPair) else ""
    if len(prompt) < REPEATED_CHARACTERS:
        return False
    return all(answer.lstrip().startswith(prompt) for answer in _answers(pair))


def _answers(pair: Pair) -> list[str]:
    return [answer for answer in (pair.chosen, pair.rejected) if answer is not None]
