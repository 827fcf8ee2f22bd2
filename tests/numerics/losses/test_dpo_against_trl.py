"""The same token ids in the same order through TRL's DPOTrainer: the same losses and rewards at every step."""

import os
from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import VOCABULARY, a_job, make_model, some_pairs, train_on_rank
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

# 40 pairs in steps of 8 make 20 steps in four epochs; TRL would average a shorter last step differently.
PAIRS, STEPS, EPOCHS = 40, 20, 4
KEYS = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")
LORA = {"type": "lora", "rank": 4, "alpha": 8, "targetModules": ["q_proj", "v_proj"]}


def trl_training(
    model: Path,
    data: PairDataset,
    output: Path,
    lora: dict[str, Any] | None,
    start: tuple[Path, str] | None = None,
    reference: Path | None = None,
    settings: dict[str, Any] | None = None,
) -> list[dict[str, float]]:
    """TRL's own log of a run; nothing of this project takes part but the token ids and the adapters' start values.

    start: folder of an adapter, and whether the same is trained on or a new one on top of it. reference: another model. settings: others of
    DPOConfig.
    """
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    class SameTokensSameOrder(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    vocabulary = {f"t{i}": i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")), eos_token="t2", pad_token="t0"
    )
    rows = [
        {"prompt_ids": p.prompt.tolist(), "chosen_ids": p.chosen.tolist(), "rejected_ids": p.rejected.tolist()}
        for p in (data[i] for i in range(len(data)))
    ]
    plain: dict[str, Any] = {
        "output_dir": str(output), "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": EPOCHS,
        "learning_rate": 2e-2 if lora or start else 2e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "logging_steps": 1, "beta": 0.1,
        "max_length": None, "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "seed": 7, "max_grad_norm": 1.0,
        "gradient_checkpointing": False, "disable_dropout": True, "optim": "adamw_torch", "weight_decay": 0.0,
    }  # fmt: skip
    arguments = DPOConfig(**plain | (settings or {}))
    policy: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if start is not None:
        from peft import PeftModel

        policy = PeftModel.from_pretrained(policy, start[0], is_trainable=True)
        # What TRL asks for before a new adapter.
        policy = policy if start[1] == "same" else policy.merge_and_unload()
    if lora:
        from dpo_operator.api.types import Adapter
        from dpo_trainer.model.adapters import add_lora

        policy = add_lora(policy, Adapter.model_validate(lora), seed=7)
    trainer = SameTokensSameOrder(
        model=policy,
        ref_model=None if reference is None else AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    return [line for line in trainer.state.log_history if "rewards/chosen" in line]


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_every_step_equals_trl(tmp_path: Path, lora: dict[str, Any] | None):
    work = WorkDir(tmp_path / "ours")
    some_pairs(PAIRS).save(work.train_data)
    on_ranks(1, make_model, work.model)
    document = a_job(epochs=EPOCHS, shuffle=False)
    if lora:
        document["spec"]["adapter"] = lora
        document["spec"]["training"]["learningRate"] = 2e-2

    ours = on_ranks(1, train_on_rank, document, work.root)[0]["steps"]
    [theirs] = on_ranks(1, trl_training, work.model, some_pairs(PAIRS), tmp_path / "trl", lora)

    assert len(ours) == len(theirs) == STEPS
    for mine, trl in zip(ours, theirs, strict=True):
        for key in KEYS:
            # logps are sums of dozens of nats, of which TRL logs the mean over pairs; the rest is of order 1.
            assert mine[key] == pytest.approx(trl[key], abs=1e-4, rel=1e-5), (mine["step"], key)
        assert mine["grad_norm"] == pytest.approx(trl["grad_norm"], rel=1e-3), mine["step"]
        if mine["step"] > 2:  # before that nothing is learnt, and accuracy counts rounding errors
            assert mine["rewards/accuracies"] == pytest.approx(trl["rewards/accuracies"], abs=1e-6), mine["step"]
    assert ours[-1]["loss"] < 0.6
