"""Make the example's model on the spot: a tokenizer and a small Llama, fine-tuned for a minute on both kinds of answers.

    python examples/quickstart/make_model.py

Nothing is downloaded. Fine-tuning on kind and curt answers alike gives DPO what it needs: a policy that says both and
prefers neither. The folder (runs/quickstart-model) is made once.
"""

import json
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "runs" / "quickstart-model"
STEPS = 220
BATCH = 16


def texts() -> list[str]:
    """Prompt and answer of every training pair, kind and curt alike."""
    rows = [json.loads(line) for line in (HERE / "data" / "train.jsonl").read_text().splitlines()]
    return [row["prompt"] + row[answer] for row in rows for answer in ("chosen", "rejected")]


def make_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text can be written."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=256
    )


def fine_tune(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: list[str]) -> None:
    """Plain next-token training; prints a line now and then."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=STEPS)
    generator = torch.Generator().manual_seed(0)
    started = time.monotonic()
    for step in range(1, STEPS + 1):
        chosen = torch.randint(len(corpus), (BATCH,), generator=generator).tolist()
        batch = tokenizer([corpus[i] + tokenizer.eos_token for i in chosen], return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 55 == 0:
            print(f"  step {step}/{STEPS}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    """Write the model's folder; config.json comes last, so that a folder with it is complete."""
    if (FOLDER / "config.json").is_file():
        print(f"model: {FOLDER.relative_to(Path.cwd()) if FOLDER.is_relative_to(Path.cwd()) else FOLDER} is there")
        return
    torch.manual_seed(0)
    corpus = texts()
    tokenizer = make_tokenizer(corpus)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    print(f"model: a Llama of {model.num_parameters():,} parameters learns to answer, kindly and curtly alike")
    fine_tune(model, tokenizer, corpus)
    temporary = FOLDER.with_suffix(".tmp")
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    if FOLDER.exists():
        raise SystemExit(f"{FOLDER} is there but holds no model; move it away")
    temporary.rename(FOLDER)


if __name__ == "__main__":
    main()
