"""The policy: a causal language model that answers one question, the log-probs of given answers."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpo_operator.api.training import Adapter, AdapterType
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.batches.batch import Layout, MicroBatch
from dpo_trainer.model import attention
from dpo_trainer.model.head import OutputHead, token_logps
from dpo_trainer.runtime.errors import input_not_found, invalid_configuration
from dpo_trainer.runtime.libraries import import_peft

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Policy(nn.Module):
    """Sums of answer log-probs under a causal language model, plain or with adapters.

    model: the Hugging Face model, or the PEFT model around it. Parameter names begin with "model.".
    whole_logits: compute every position's logits by the model's own forward pass: slower and larger, for models that
        reach their output layer in an unusual way.
    head: from hidden states to log-probs.
    layout: how batches for this model are best laid out; see pack.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
        prefix = getattr(causal_lm, "base_model_prefix", "")
        if prefix not in causal_lm._modules or causal_lm.get_output_embeddings() is None:
            raise invalid_configuration(
                f"spec.model: expected a causal language model with a transformer and an output layer, found {type(causal_lm).__name__}"
            )
        self.head = OutputHead(causal_lm, prefix)
        self.whole_logits = False
        self.layout: Layout = "off"
        # Second names for submodules of self.model; a tuple keeps them out of named_parameters().
        self._parts: tuple[nn.Module, str] = (causal_lm, prefix)

    def pack(self, layout: Layout, *, by_flex: bool = False) -> bool:
        """Have batches of this layout accepted; False, and nothing changed, where the model's attention can't take them.

        by_flex: by FlexAttention instead of SDPA.
        """
        if layout != "off" and not attention.enable(self._parts[0], by_flex=by_flex):
            return False
        self.layout = layout
        return True

    def after_each_pass(self, call: Callable[[], None]) -> None:
        """Have something called after each forward pass: over a micro-batch, or for one more token of an answer."""
        causal_lm, prefix = self._parts
        causal_lm._modules[prefix].register_forward_hook(lambda *_: call())

    def forward(self, batch: MicroBatch, *, whole_logits: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probs of the batch's answers (and prompts, where it scores them), summed over their tokens.

        whole_logits: as the attribute, for this call.
        Returns float64 [segments, 2], nats: sums over all tokens of each segment, and over those of its head; and float64
        [3], see head.token_logps.
        """
        causal_lm, prefix = self._parts
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.spans is not None:
            inputs["spans"] = batch.spans
            # Whatever has four dimensions is taken for a finished mask; otherwise one of the whole row would be made.
            inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.input_ids.device)
        if _accepts(causal_lm._modules[prefix], "position_ids"):
            inputs["position_ids"] = batch.position_ids
        if whole_logits or self.whole_logits:
            logps, looked_at = token_logps(
                causal_lm(**inputs).logits.flatten(0, 1)[batch.scored_positions], batch.scored_targets
            )
        else:
            # Only answer rows enter the head: prompts and padding would cost most of the logits' memory.
            output = causal_lm._modules[prefix](**inputs)
            rows = output.last_hidden_state.flatten(0, 1).index_select(0, batch.scored_positions)
            logps, looked_at = self.head(output, rows, batch.scored_targets)
        # Sums in float64: near -600 nats float32 has steps of 6e-5, and DPO subtracts two such sums from two others.
        both = torch.stack([logps.double(), logps.double() * batch.scored_head], dim=1)
        sums = torch.zeros(batch.segments, 2, dtype=torch.float64, device=logps.device)
        return sums.index_add(0, batch.scored_segment, both), looked_at


def _accepts(module: nn.Module, name: str) -> bool:
    return name in inspect.signature(type(module).forward).parameters


def load_model(spec: DPOJobSpec, folder: Path, *, seed: int, zero3: Callable[[int], Any] | None = None) -> nn.Module:
    """The job's model from its folder, with new adapters where the job wants them, ready to be trained.

    seed: of the adapters' start values; the same on all ranks.
    zero3: called with the hidden size before the weights are read; whatever it returns is kept until they are. Under
        ZeRO-3 it switches partitioned loading on, so that no rank ever holds the whole model.
    Dropout of the base model is off, as in every published DPO implementation: the policy's log-probs are compared
    with the reference's, and noise in either only hides the preference. Adapters keep the dropout that the job sets.
    Raises TrainerError when the folder is no model or lacks weights, or adapter targets don't exist.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if not (folder / "config.json").is_file():
        raise input_not_found(f"{folder}: expected a Hugging Face model folder with config.json; run prepare again")
    try:
        config = AutoConfig.from_pretrained(folder, **common)
        turn_off_dropout(config)
        partitioning = zero3(config.get_text_config().hidden_size) if zero3 else None
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            dtype=DTYPES[spec.training.precision],
            attn_implementation={"auto": None, "flex": "sdpa"}.get(spec.model.attention, spec.model.attention),
            output_loading_info=True,
            **common,
        )
    except (OSError, ValueError, ImportError) as error:
        raise invalid_configuration(f"spec.model: {folder.name} can't be loaded: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise invalid_configuration(
            f"spec.model: expected weights for every parameter, found none for {len(missing)}, such as {missing[0]}"
        )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if spec.adapter.type is not AdapterType.NONE:
        model = add_lora(model, spec.adapter, seed=seed)
    # Until here it tells PEFT, too, that weights are partitioned: DoRA starts from their norms and has to gather them.
    del partitioning
    if spec.training.gradient_checkpointing:
        _enable_checkpointing(model)
    model.train()
    return model


def turn_off_dropout(config: Any) -> None:
    """Set every dropout probability of a model configuration to 0, whatever its models call it."""
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for name, value in part.to_dict().items():
            if ("drop" in name or "jitter" in name) and isinstance(value, float):
                setattr(part, name, 0.0)


def _enable_checkpointing(model: nn.Module) -> None:
    """Recompute each block in the backward pass.

    Reentrant: the other kind compares shapes of recomputed tensors, and under older versions of DeepSpeed a parameter that
    was partitioned again in between had another one. Reentrant blocks get gradients only when an input needs them, which
    frozen embeddings do not give, hence enable_input_require_grads.
    """
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Named anew in transformers 5; both take torch.utils.checkpoint's options first.
    enable = getattr(causal_lm, "activation_checkpointing_enable", causal_lm.gradient_checkpointing_enable)
    try:
        enable({"use_reentrant": True})
    except ValueError as error:
        raise invalid_configuration(f"spec.training.gradientCheckpointing: set it to false; {error}") from error
    causal_lm.enable_input_require_grads()


def add_lora(model: nn.Module, adapter: Adapter, *, seed: int) -> nn.Module:
    """Freeze a model and add low-rank adapters (Hu et al. 2021, 2106.09685) that start as no change.

    With dora each also has a magnitude for every output (2402.09353), at first the norm of the model's own weights; with
    rslora its scale is alpha/sqrt(rank) (2312.03732).
    Returns the PEFT model. Raises TrainerError when a target names no module.
    """
    peft = import_peft()

    targets: str | list[str] = adapter.target_modules
    if "all-linear" in adapter.target_modules:
        targets = "all-linear"
    else:
        names = [name for name, _ in model.named_modules()]
        for target in adapter.target_modules:
            if not any(name == target or name.endswith(f".{target}") for name in names):
                raise invalid_configuration(
                    f"spec.adapter.targetModules: the model has no module {target}; it has {', '.join(_weight_modules(model))}, "
                    "or use all-linear"
                )
    config = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        use_dora=adapter.dora,
        use_rslora=adapter.rslora,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Adapters in the model's dtype: DeepSpeed's flat buffers hold one dtype, and keeps fp32 master weights anyway.
        return peft.get_peft_model(model, config, autocast_adapter_dtype=False)


def _weight_modules(model: nn.Module) -> list[str]:
    """Last parts of the names of modules with a weight matrix, each once."""
    output = model.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if hasattr(module, "weight") and not isinstance(module, nn.Embedding) and module is not output
    }
    return sorted(name for name in found if "norm" not in name and not name.startswith("ln_"))
