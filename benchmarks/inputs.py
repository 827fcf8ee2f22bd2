"""What the benchmarks run on: random Llamas of two sizes, and HH-RLHF-like dialogues as token ids."""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_trainer.launch.launcher import KEEP_FREED

REPOSITORY = Path(__file__).resolve().parents[1]
MAX_LENGTH, VOCABULARY = 512, 50257
# What the launcher tells glibc, so that it keeps the pages that a step frees for the next one.
TUNED = KEEP_FREED
_MARK = "\n\nAssistant:"


@dataclass(frozen=True)
class Shape:
    """A Llama with GPT-2's vocabulary. pairs: how many are trained on, in one epoch."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    pairs: int

    @property
    def body_parameters(self) -> int:
        """Elements of all matrices but embedding and output head."""
        return self.layers * (4 * self.hidden * self.hidden + 3 * self.hidden * self.mlp)


SHAPES = {"S": Shape(256, 6, 8, 704, 24), "M": Shape(512, 8, 8, 1408, 16)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that name the data and the tokenizer; without them both are looked for in a folder beside the checkout."""
    shared = Path(os.environ.get("DPO_SHARED") or REPOSITORY.parent / "shared")
    parser.add_argument(
        "--dialogues", type=Path, default=shared / "data/hh_helpful_base/train.jsonl", help="an HH-RLHF .jsonl file"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=shared / "tokenizers/gpt2",
        help="folder with GPT-2's encoder.json and vocab.bpe",
    )


def make_data(folder: Path, dialogues: Path, tokenizer: Path, *, pairs: int | None, repeat: int = 1) -> None:
    """Write the first pairs of a file, all of them with None, as a run's training data. repeat: so many times over."""
    from dpo_trainer.data.dataset import PairDataset

    found = list(_pairs(dialogues, tokenizer, pairs))
    if pairs is not None and len(found) < pairs:
        raise SystemExit(f"{dialogues}: expected {pairs} usable pairs, found {len(found)}")
    PairDataset.from_pairs(found * repeat).save(folder / "data" / "train")


def make_model(folder: Path, shape: Shape) -> None:
    """Write a random model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=shape.hidden, intermediate_size=shape.mlp, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.heads, max_position_embeddings=2048,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")


def _pairs(dialogues: Path, tokenizer: Path, limit: int | None) -> Iterator[Any]:
    import numpy as np
    from tokenizers import ByteLevelBPETokenizer

    from dpo_trainer.data.dataset import TokenPair
    from dpo_trainer.data.tokens.truncation import Limits, truncate

    words = ByteLevelBPETokenizer(str(tokenizer / "encoder.json"), str(tokenizer / "vocab.bpe"))
    limits, found = Limits(MAX_LENGTH, None, "keep_end"), 0
    for number, line in enumerate(dialogues.open(encoding="utf-8")):
        row = json.loads(line)
        (prompt, chosen), (other, rejected) = (row[name].rsplit(_MARK, 1) for name in ("chosen", "rejected"))
        if prompt == other and chosen.strip() and rejected.strip() and chosen != rejected:
            ids = [words.encode(text).ids for text in (prompt + _MARK, chosen, rejected)]
            parts = truncate(ids[0], [*ids[1], 50256], [*ids[2], 50256], limits)
            yield TokenPair(*(np.array(part, dtype=np.int32) for part in parts), number)
            found += 1
        if found == limit:
            return
