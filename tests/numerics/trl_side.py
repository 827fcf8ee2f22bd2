"""TRL's own loss and gradient for given token ids: its trainers, data preparation, collators and compute_loss, untouched.

Every token is a word of its own, so TRL is given text, prepares it as it always does, and is held to have found the same ids.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_trainer.data.dataset import PairDataset
from tests.numerics.jobs import VOCABULARY

# Every answer ends with it: TRL adds it where it is missing.
END = 2


@dataclass(frozen=True)
class TrlCase:
    """A configuration of one of TRL's trainers.

    trainer: dpo, kto, orpo or cpo. settings: fields of its config. batch: examples of one loss; 0 for all at once.
    """

    trainer: str
    settings: dict[str, Any] = field(default_factory=dict)
    batch: int = 0


def losses_and_gradients(
    cases: dict[str, tuple[TrlCase, str]], data: dict[str, PairDataset], policy: Path, reference: Path, output: Path
) -> dict[str, dict[str, Any]]:
    """Of each case, given with the name of its data: "loss", "gradient" by parameter, and "metrics" as TRL logs them.

    Losses and gradients are means over the batches, which have to be equally large to weigh every example alike.
    """
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    return {name: _one(case, data[which], policy, reference, output) for name, (case, which) in cases.items()}


def _one(case: TrlCase, data: PairDataset, policy: Path, reference: Path, output: Path) -> dict[str, Any]:
    trainer = _trainer(case, data, policy, reference, output)
    assert _ids_of(trainer.train_dataset) == sorted(_ids(data)), "TRL made other tokens of the text"
    loss, batches = 0.0, list(trainer.get_train_dataloader())
    trainer.model.train()
    for batch in batches:
        part = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)) / len(batches)
        part.backward()
        loss += part.item()
    logged = trainer._metrics["train"] if hasattr(trainer, "_metrics") else trainer._stored_metrics["train"]
    return {
        "loss": loss,
        "gradient": {name: p.grad.numpy() for name, p in trainer.model.named_parameters()},
        "metrics": {name: sum(values) / len(values) for name, values in logged.items()},
    }


def _trainer(case: TrlCase, data: PairDataset, policy: Path, reference: Path, output: Path) -> Any:
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    words = Tokenizer(models.WordLevel({_word(i): i for i in range(VOCABULARY)}, unk_token=_word(0)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=_word(END), pad_token=_word(0))
    make_config, make_trainer = {
        "dpo": (DPOConfig, DPOTrainer), "kto": (KTOConfig, KTOTrainer), "orpo": (ORPOConfig, ORPOTrainer),
        "cpo": (CPOConfig, CPOTrainer),
    }[case.trainer]  # fmt: skip
    # The longest sequence, where this project's trainer cuts KTO's answers to other prompts, too.
    longest = int((data.lengths[:, 0] + data.lengths[:, 1:].max(axis=1)).max())
    answers = int((data.lengths[:, 1:] > 0).sum()) if case.trainer == "kto" else len(data)
    config = make_config(
        output_dir=str(output), per_device_train_batch_size=case.batch or answers, max_length=longest, use_cpu=True,
        bf16=False, report_to=[], save_strategy="no", gradient_checkpointing=False, disable_dropout=True, **case.settings,
    )  # fmt: skip
    models_of: dict[str, Any] = {"model": LlamaForCausalLM.from_pretrained(policy, dtype=torch.float32)}
    if case.trainer in ("dpo", "kto"):
        models_of["ref_model"] = LlamaForCausalLM.from_pretrained(reference, dtype=torch.float32)
    return make_trainer(
        **models_of, args=config, train_dataset=Dataset.from_list(list(_rows(data))), processing_class=tokenizer
    )


def _rows(data: PairDataset) -> Iterator[dict[str, Any]]:
    """Text in the shapes that TRL's users have: preference pairs, or answers with a label."""
    for i in range(len(data)):
        prompt, chosen, rejected = (_text(part) for part in (data[i].prompt, data[i].chosen, data[i].rejected))
        if chosen and rejected:
            yield {"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"}
        else:
            yield {"prompt": prompt, "completion": f" {chosen or rejected}", "label": bool(chosen)}


def _word(token: int) -> str:
    return f"<{token}>"


def _text(tokens: Any) -> str:
    return " ".join(_word(int(token)) for token in tokens)


def _ids(data: PairDataset) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer of every answer there is."""
    pairs = [data[i] for i in range(len(data))]
    return [(p.prompt.tolist(), a.tolist()) for p in pairs for a in (p.chosen, p.rejected) if len(a)]


def _ids_of(prepared: Any) -> list[tuple[list[int], list[int]]]:
    """The same of a dataset that TRL prepared."""
    found: list[tuple[list[int], list[int]]] = []
    for row in prepared:
        if "completion_ids" in row:
            found.append((row["prompt_ids"], row["completion_ids"]))
        elif "chosen_ids" in row:
            found += [(row["prompt_ids"], row["chosen_ids"]), (row["prompt_ids"], row["rejected_ids"])]
        else:
            for side in ("chosen", "rejected"):
                start = row[f"{side}_labels"].count(-100)
                found.append((row[f"{side}_input_ids"][:start], row[f"{side}_input_ids"][start:]))
    return sorted(found)
