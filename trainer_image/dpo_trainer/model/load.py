"""Loading the weights."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpo_operator.api.model import AdapterType
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.distributed.zero3_internals import import_deepspeed, is_partitioned
from dpo_trainer.model import quantized
from dpo_trainer.model.adapters import add_adapters
from dpo_trainer.pretrained.reward import HEAD
from dpo_trainer.runtime.errors import input_not_found, invalid_configuration

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_model(
    spec: DPOJobSpec,
    folder: Path,
    *,
    zero3: Callable[[Any], Any] | None = None,
    before: Collection[str] = (),
    device: torch.device | None = None,
) -> nn.Module:
    """The job's model from its folder, with adapters where the job wants them, ready to be trained.

    zero3: called with the text model's configuration before the weights are read; the object that it returns is kept alive until they are read. Under
        ZeRO-3 it switches partitioned loading on, so that no rank ever holds the whole model. A 4-bit base is not partitioned.
    device: where a 4-bit base goes; None means the CPU.
    Dropout of the base model is off, as in every published DPO implementation: the policy's log-probs are compared
    with the reference's, and noise in either only hides the preference. Adapters keep the dropout that the job sets.
    Raises TrainerError when the folder is no model or lacks weights, or adapter targets don't exist.
    """
    from transformers import AutoConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    four_bit = spec.adapter.type is AdapterType.QLORA
    dtype = DTYPES[spec.training.precision]
    if not (folder / "config.json").is_file():
        raise input_not_found(f"{folder}: expected a Hugging Face model folder with config.json; run prepare again")
    try:
        config = AutoConfig.from_pretrained(folder, **common)
        turn_off_dropout(config)
        classifier = spec.method.trains_reward_model
        if classifier:
            as_classifier(config)
        partitioning = zero3(config.get_text_config()) if zero3 else None
        if four_bit:
            partitioning = None
            common |= quantized.loading_options(dtype, device or torch.device("cpu"))
        model: nn.Module
        with _without_report() if classifier else nullcontext():
            model, info = auto_class(classifier=classifier).from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                dtype=dtype,
                attn_implementation={"auto": None, "flex": "sdpa"}.get(spec.model.attention, spec.model.attention),
                output_loading_info=True,
                **common,
            )
    except (OSError, ValueError, ImportError) as error:
        raise invalid_configuration(f"spec.model: {folder.name} can't be loaded: {error}") from error
    head = {f"{HEAD}.weight"} if classifier else set[str]()
    if missing := sorted(set(info["missing_keys"]) - head):
        raise invalid_configuration(
            f"spec.model: expected weights for every parameter, found none for {len(missing)}, such as {missing[0]}"
        )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if classifier:
        _clear(model.get_submodule(HEAD))
    if four_bit:
        quantized.take_out_of_parameters(model)
    if spec.adapter.type is not AdapterType.NONE:
        model = add_adapters(model, spec, folder, before)
    if four_bit:
        # PEFT makes adapters in the dtype of the layer's weights, which here are bytes.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
    # Partitioned loading stays on until here: DoRA starts from the norms of the weights, so PEFT has to gather them.
    del partitioning
    if spec.training.gradient_checkpointing:
        _enable_checkpointing(model, reentrant=spec.training.router_aux_loss is None)
    model.train()
    return model


def auto_class(*, classifier: bool) -> Any:
    """The class of transformers that loads a language model, or makes a sequence classifier of one."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if classifier else AutoModelForCausalLM


def load_whole(
    folder: Path, dtype: torch.dtype | str, *, classifier: bool = False, **options: Any
) -> tuple[Any, set[str]]:
    """A model of a folder without adapters, and the names of parameters that the folder has no weights for. Raises what transformers raises."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if classifier:
        as_classifier(config)
    with _without_report() if classifier else nullcontext():
        model, info = auto_class(classifier=classifier).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    return model, set(info["missing_keys"])


@contextmanager
def _without_report() -> Iterator[None]:
    """Within this context transformers prints no report of missing weights: a new classifier's head has none, and the caller checks all others."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def as_classifier(config: Any) -> None:
    """Make a model's configuration that of a classifier with one output, whose score is that of the last token.

    Without a padding token: with one, transformers takes the last token that is another, which skips the end of an answer where the end
    token also pads. It then refuses to score several texts at once instead of scoring them wrongly.
    """
    config.num_labels = 1
    for part in (config, config.get_text_config()):
        part.pad_token_id = None


def _clear(head: nn.Module) -> None:
    """Set a new head to zero, so that all rewards begin at 0 whatever the seed and the number of ranks."""
    weight: Any = head.weight
    if not is_partitioned(weight):
        nn.init.zeros_(weight)
        return
    with import_deepspeed().zero.GatheredParameters([weight], modifier_rank=0):
        nn.init.zeros_(weight)


def bare_model(folder: Path, dtype: torch.dtype | None = None, *, runs: bool = False, classifier: bool = False) -> Any:
    """The Hugging Face model of a folder without memory for its weights, which are not read. Raises what transformers raises.

    dtype: None for the one that config.json names. runs: with what the model computes for itself, such as rotary frequencies, so that it can
        run once it has weights. classifier: the reward model that is made of it.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if classifier:
        as_classifier(config)
    options = {} if dtype is None else {"dtype": dtype}
    with init_empty_weights(include_buffers=False) if runs else torch.device("meta"):
        return auto_class(classifier=classifier).from_config(config, trust_remote_code=False, **options)


def turn_off_dropout(config: Any) -> None:
    """Set every dropout probability of a model configuration to 0, whatever its models call it."""
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for name, value in part.to_dict().items():
            if ("drop" in name or "jitter" in name) and isinstance(value, float):
                setattr(part, name, 0.0)


def causal_lm_of(model: nn.Module) -> Any:
    """The Hugging Face model, without the PEFT model around it."""
    base: Any = model
    return base.get_base_model() if hasattr(model, "get_base_model") else model


def _enable_checkpointing(model: nn.Module, *, reentrant: bool) -> None:
    """Recompute each block in the backward pass. reentrant: false where a loss is taken of values inside a block, such as a router's.

    Reentrant otherwise: the other kind compares shapes of recomputed tensors, and under older versions of DeepSpeed a parameter that
    was partitioned again in between had another one. Reentrant blocks get gradients only when an input needs them, which
    frozen embeddings do not give, hence enable_input_require_grads.
    """
    causal_lm = causal_lm_of(model)
    # Renamed in transformers 5; both take torch.utils.checkpoint's options first.
    enable = getattr(causal_lm, "activation_checkpointing_enable", causal_lm.gradient_checkpointing_enable)
    try:
        enable({"use_reentrant": True} if reentrant else {"use_reentrant": False, "determinism_check": "none"})
    except ValueError as error:
        raise invalid_configuration(f"spec.training.gradientCheckpointing: set it to false; {error}") from error
    causal_lm.enable_input_require_grads()
