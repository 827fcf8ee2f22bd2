"""Tokenizers with the chat templates that TRL ships, for tests of what reaches the tokens."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.jinja")))
# What looks like a token in a template: <|im_end|>, <start_of_turn>, [gMASK], <｜User｜>.
_TOKENS = re.compile(
    r"<[|｜][^\s|｜<>{}]+[|｜]>|<\|[a-z_]+>|<[a-z_]+\|>|</?(?:start_of_turn|end_of_turn|end_of_utterance|sop)>|\[gMASK\]"
)
THOUGHTS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


# One that takes all turns but the assistant's for the user's.
TWO_ROLES = (
    "{% for m in messages %}{{ ('A: ' if m['role'] == 'assistant' else 'Q: ') + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
)


@cache
def tokenizer(name: str, *, special_thoughts: bool = False) -> Any:
    """A tokenizer of bytes with a template, by its name or as it is, and the special tokens that it names.

    Thoughts are tokens, special or not.
    """
    template = (FOLDER / f"{name}.jinja").read_text() if name in NAMES else name
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "</s>", *dict.fromkeys(_TOKENS.findall(template))]
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    thoughts = [AddedToken(text, special=special_thoughts, normalized=False) for text in THOUGHTS]
    (made.add_special_tokens if special_thoughts else made.add_tokens)(thoughts)
    loaded = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    loaded.chat_template = template
    return loaded
