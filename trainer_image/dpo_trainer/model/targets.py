"""Which weights of a model get a low-rank adapter: the names in a job against the modules that the model has."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from dpo_operator.api.model import ALL_LINEAR, Adapter
from dpo_trainer.distributed.zero3_internals import whole_shape
from dpo_trainer.pretrained.reward import HEAD
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration

# What experts' matrices were called when each expert had modules of its own. The new matrix holds both of two such halves.
_HALVES: Final = {"gate_proj": "up_proj", "up_proj": "gate_proj", "w1": "w3", "w3": "w1"}
_FORMER: Final = {**dict.fromkeys(_HALVES, "gate_up_proj"), "w2": "down_proj"}
# Name of a trained parameter: PEFT puts two modules around the model.
_TRAINED: Final = re.compile(r"base_model\.model\.(?P<module>.+?)\.lora_")
# On models with experts PEFT takes these names for the experts' alone, so such a layer is named by its weight.
_TAKEN_BY_PEFT: Final = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})


@dataclass(frozen=True)
class Targets:
    """What gets an adapter.

    modules: linear layers, as PEFT's target_modules takes them. parameters: weights that PEFT adapts in place, as its target_parameters
    takes them: experts, and layers whose names PEFT would take for experts. covered: their names without the number of the layer.
    left_out: matrices without an adapter, by the reason.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    covered: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        rest = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in self.left_out.items() if names)
        return f"the adapter covers {', '.join(self.covered)}" + (f" (not covered: {rest})" if rest else "")


def resolve(causal_lm: Any, adapter: Adapter, before: Collection[str] = ()) -> Targets:
    """The weights that the job's targetModules mean. causal_lm: a Hugging Face model; its weights are not looked at.

    before: names of the parameters in a checkpoint of the run. If they are those of linear layers alone, they tell what is adapted: an earlier
    version may have taken the same targetModules for fewer layers, and the run continues with these.
    Raises TrainerError INVALID_CONFIGURATION naming the modules that there are.
    """
    found = _Modules(causal_lm)
    adapted = {match["module"] for name in before if (match := _TRAINED.match(name))}
    if adapted and adapted <= {*found.linears, found.output}:
        return _targets(found, adapted, adapter)
    chosen: set[str] = set(found.linears) | set(found.experts) if ALL_LINEAR in adapter.target_modules else set()
    for target in adapter.target_modules:
        if target != ALL_LINEAR:
            chosen |= _named(target, adapter, found)
    return _targets(found, chosen, adapter)


def _targets(found: "_Modules", chosen: set[str], adapter: Adapter) -> Targets:
    """Modules and weights as PEFT takes them. Raises TrainerError for what it can't adapt in place."""
    weights = {name for name in chosen if found.is_parameter(name)}
    if weights:
        _check_in_place(adapter, sorted({_kind(name) for name in weights}))
    matrices = {*found.linears, *found.experts, *found.routers, *found.others}
    return Targets(
        modules=shortest(chosen - weights, found.every),
        parameters=shortest({found.weight_of(name) for name in weights}, found.weights, least=2),
        covered=_kinds(chosen),
        left_out={
            "output layer": _kinds({found.output} - chosen) if found.output else (),
            "routers, whose least change sends tokens to other experts": _kinds(set(found.routers) - chosen),
            "neither linear layers nor experts": _kinds(found.others),
            "not named in targetModules": _kinds(matrices - chosen - {*found.routers, *found.others}),
        },
    )


def refuse_shared_output(causal_lm: Any, modules: Iterable[str]) -> None:
    """Raise INVALID_CONFIGURATION when an adapter's modules have the output layer of a model whose output layer is its embedding."""
    found = _Modules(causal_lm)
    if found.output in modules and found.tied:
        raise invalid_configuration(
            f"spec.model.adapter: it adapts {found.output}, whose weights are the embedding's too (tie_word_embeddings), so it could not be "
            "merged; use a copy of the model with weights of its own for it"
        )


class _Modules:
    """Names of a model's matrices by what they are, and of its modules and weights."""

    def __init__(self, causal_lm: Any) -> None:
        from transformers.pytorch_utils import Conv1D

        self.linears: list[str] = []
        self.experts: list[str] = []
        self.routers: list[str] = []
        self.others: list[str] = []
        self.embeddings: list[str] = []
        self.output = ""
        self.every = [name for name, _ in causal_lm.named_modules()]
        self.weights = [name for name, _ in causal_lm.named_parameters()]
        # Of a classifier the head, which is trained whole.
        output = causal_lm.get_output_embeddings() or causal_lm._modules.get(HEAD)
        embedding = causal_lm.get_input_embeddings()
        config = causal_lm.config
        flags = [getattr(part, "tie_word_embeddings", False) for part in (config, config.get_text_config())]
        same = output is not None and embedding is not None and output.weight is embedding.weight
        self.tied = same or any(flags)
        modules = dict(causal_lm.named_modules())
        for name, module in modules.items():
            if module is output:
                self.output = name
            elif isinstance(module, nn.Embedding):
                self.embeddings.append(name)
            elif _is_router(name, module, modules):
                self.routers.append(name)
            elif isinstance(module, nn.Linear | Conv1D):
                self.linears.append(name)
            else:
                self._add_weights(name, module)

    def _add_weights(self, name: str, module: nn.Module) -> None:
        """Matrices that a module holds itself. One of three dimensions is that of all experts."""
        for own, parameter in module.named_parameters(recurse=False):
            dimensions = len(whole_shape(parameter))
            convolution = isinstance(module, nn.modules.conv._ConvNd)
            if dimensions >= 2 and not own.endswith("bias"):
                (self.experts if dimensions == 3 and not convolution else self.others).append(f"{name}.{own}")

    def is_parameter(self, name: str) -> bool:
        """Whether PEFT has to adapt a weight in place instead of its module."""
        taken = bool(self.experts) and name.rpartition(".")[2] in _TAKEN_BY_PEFT
        return taken or name in self.experts or name in self.routers

    def weight_of(self, name: str) -> str:
        """Name of the weight of a module, or of the weight itself."""
        return name if name in self.experts else f"{name}.weight"

    @property
    def names(self) -> str:
        """What may be named, for messages."""
        return ", ".join(_kinds([*self.linears, *self.experts]))


def _is_router(name: str, module: nn.Module, modules: Mapping[str, nn.Module]) -> bool:
    parent, _, last = name.rpartition(".")
    beside = last in ("gate", "router") and f"{parent}.experts" in modules
    return hasattr(module, "weight") and (beside or "router" in type(module).__name__.lower())


def _named(target: str, adapter: Adapter, found: _Modules) -> set[str]:
    """Modules and weights that a target names by the end of their name. Raises TrainerError."""
    hits = set(_ending(target, [*found.linears, *found.experts, *found.routers]))
    path, _, last = target.rpartition(".")
    if former := _FORMER.get(last):
        former_hits = set(_ending(f"{path}.{former}" if path else former, found.experts))
        other = _HALVES.get(last)
        if former_hits and other and (f"{path}.{other}" if path else other) not in adapter.target_modules:
            raise _wrong(
                f"{target} is half of {', '.join(_kinds(former_hits))}, which holds {last} and {other} of all experts; name both halves, or "
                f"a longer part of the path of another {last}"
            )
        hits |= former_hits
    if found.output and _ending(target, [found.output]):
        if found.tied:
            raise _wrong(
                f"{target} is the output layer, and its weights are the embedding's too (tie_word_embeddings), so an update can't be told "
                "from one of the embedding and could not be merged; leave it out, or use a copy of the model with weights of its own for it"
            )
        hits.add(found.output)
    if embeddings := _ending(target, found.embeddings):
        raise _wrong(f"{embeddings[0]} is an embedding, and embeddings get no adapters; leave {target} out")
    if not hits:
        there = bool(_ending(target, [*found.every, *found.weights]))
        lacks = f"{target} is neither a linear layer nor experts" if there else f"the model has no module {target}"
        default = (
            " (by default the targets are those of Llama)" if adapter.target_modules == Adapter().target_modules else ""
        )
        raise _wrong(f"{lacks}{default}; it has {found.names}; name some of them, or use {ALL_LINEAR}")
    return hits


def _check_in_place(adapter: Adapter, names: list[str]) -> None:
    """Refuse what PEFT can't do in place: the product of the two matrices is added to the weight."""
    for field, used in (("dropout", adapter.dropout > 0), ("dora", adapter.dora)):
        if used:
            raise invalid_configuration(
                f"spec.adapter.{field}: not possible for adapters on experts ({', '.join(names)}), which are added to the weights; leave it "
                "out, or name other targetModules"
            )


def _wrong(problem: str) -> TrainerError:
    return invalid_configuration(f"spec.adapter.targetModules: {problem}")


def _ending(target: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name == target or name.endswith(f".{target}")]


def _kind(name: str) -> str:
    """A name without its layer: q_proj of any layer, experts.down_proj."""
    parts = [part for part in name.split(".") if not part.isdecimal()]
    inside = len(parts) > 1 and parts[-2].endswith(("experts", "expert"))
    return ".".join(parts[-2:]) if inside or parts[-1] == "weight" else parts[-1]


def _kinds(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({_kind(name) for name in names}))


def shortest(chosen: set[str], every: list[str], *, least: int = 1) -> tuple[str, ...]:
    """Ends of names, of at least so many parts, that mean the chosen ones among all."""
    made: set[str] = set()
    for name in sorted(chosen):
        parts = name.split(".")
        ends = [".".join(parts[-count:]) for count in range(min(least, len(parts)), len(parts) + 1)]
        if made.isdisjoint(ends):
            made.add(next(end for end in ends if chosen.issuperset(_ending(end, every))))
    return tuple(sorted(made))
