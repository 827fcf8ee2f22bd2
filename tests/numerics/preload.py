"""What every rank of a test needs, loaded once: the fork server keeps it, so a rank starts in a second.

Nothing here may load what a rank of a real run goes without, above all torch's compiler.
"""

import os

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import deepspeed
import deepspeed.module_inject.auto_ep_layer
import numpy.ctypeslib
import tensorboard.compat.proto.event_pb2
import tensorboard.compat.proto.summary_pb2
import tensorboard.summary.writer.record_writer
import torch._subclasses.schema_check_mode
import transformers.models.llama.modeling_llama
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import dpo_trainer.training.train
from dpo_trainer.runtime.libraries import import_peft

# Transformers compiles a thousand patterns for the first model that a process loads: a third of a short run's time.
get_checkpoint_conversion_mapping("llama")

PRELOADED = (deepspeed, import_peft(), numpy, tensorboard, torch, transformers, dpo_trainer.training.train)
