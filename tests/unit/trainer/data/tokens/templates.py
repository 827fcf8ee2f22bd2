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


@cache
def tokenizer(name: str) -> Any:
    """A tokenizer of bytes with a template and the special tokens that it names; thoughts are tokens that are not special."""
    template = (FOLDER / f"{name}.jinja").read_text()
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "</s>", *dict.fromkeys(_TOKENS.findall(template))]
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in THOUGHTS])
    loaded = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    loaded.chat_template = template
    return loaded
