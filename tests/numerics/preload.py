"""What every rank of a test needs, imported once: the fork server keeps it, so a rank starts in a second."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import deepspeed
import transformers.models.llama.modeling_llama

import dpo_trainer.training.train
from dpo_trainer.runtime.libraries import import_peft

PRELOADED = (deepspeed, import_peft(), transformers, dpo_trainer.training.train)
