"""Settings that guides to DPO call dangerous: warnings of `dpo validate` and `dpo run`, each with its source. None is refused."""

from collections.abc import Callable
from dataclasses import dataclass

from dpo_operator.api.method import MethodName
from dpo_operator.api.model import AdapterType
from dpo_operator.api.sweep.grid import legs_of
from dpo_operator.api.types import DPOJobSpec

TABLE = "DPO technical guide, table of key hyperparameters"
TROUBLES = "DPO technical guide, troubleshooting table"
NOTES = "Neural-Path notes on DPO"
SIMPO = "SimPO, arXiv 2405.14734, and its authors' advice on rates"
ORPO = "ORPO, arXiv 2403.07691"
REWARD = "InstructGPT, arXiv 2203.02155, appendix C.2"

# The guides speak of models of billions of weights; smaller ones take higher rates.
SMALL_MODEL = 100_000_000
# β where the log-ratio is a sum over the answer's tokens, 1/nats.
BETAS = (0.01, 0.5)
_SUMS = (MethodName.DPO, MethodName.LD_DPO)
RATES = (5e-7, 2e-6)
ADAPTER_RATES = (5e-7, 5e-5)
SIMPO_RATES = (3e-7, 1e-6)
ORPO_RATES = (5e-7, 1e-5)
# 9e-6 for a model of 6 billion weights; its head is new, so the rates are those of fine-tuning.
REWARD_RATES, REWARD_ADAPTER_RATES = (1e-6, 5e-5), (1e-5, 1e-3)
# With higher rates than the first, β should be at least the second.
HIGH_RATE, LEAST_BETA = 1e-5, 0.05
MOST_EPOCHS = 3
# One guide recommends 128 to 1,024 pairs, the other trains with 16.
BATCHES = (16, 1024)
# A name that says that the model was tuned on chats.
_CHAT_NAMES = ("instruct", "chat", "-it", "-sft", "dpo")


@dataclass(frozen=True)
class Advice:
    """A warning about a setting.

    field: camelCase path inside spec. text: what was found and what the guides say. source: which guide or paper.
    """

    field: str
    text: str
    source: str

    def __str__(self) -> str:
        return f"spec.{self.field}: {self.text} ({self.source})"


@dataclass(frozen=True)
class _Rule:
    """says: the text, empty where the setting is fine. parameters: of the model, None if unknown."""

    field: str
    source: Callable[[DPOJobSpec], str]
    says: Callable[[DPOJobSpec, int | None], str]


def _beta(spec: DPOJobSpec, _: int | None) -> str:
    beta, (least, most) = spec.method.strength, BETAS
    if spec.method.name not in _SUMS or least <= beta <= most:
        return ""
    if beta < least:
        return f"{beta:g} is below {least:g}: the policy may drift from its reference into gibberish; begin with 0.1"
    return f"{beta:g} is above {most:g}: the policy hardly leaves its reference; begin with 0.1"


def _rates(spec: DPOJobSpec) -> tuple[float, float]:
    if spec.method.trains_reward_model:
        return REWARD_RATES if spec.adapter.type is AdapterType.NONE else REWARD_ADAPTER_RATES
    if spec.adapter.type is not AdapterType.NONE:
        return ADAPTER_RATES
    return {MethodName.SIMPO: SIMPO_RATES, MethodName.ORPO: ORPO_RATES}.get(spec.method.name, RATES)


def _source_of_rates(spec: DPOJobSpec) -> str:
    if spec.method.trains_reward_model:
        return REWARD
    if spec.adapter.type is not AdapterType.NONE:
        return NOTES
    return {MethodName.SIMPO: SIMPO, MethodName.ORPO: ORPO}.get(spec.method.name, TABLE)


def _rate(spec: DPOJobSpec, parameters: int | None) -> str:
    rate, (least, most) = spec.learning_rate, _rates(spec)
    trained = "all weights" if spec.adapter.type is AdapterType.NONE else "adapters"
    usual = f"for {trained} of a large model and {spec.method.name.value}, {least:g} to {most:g} is usual"
    if rate > most and (parameters is None or parameters >= SMALL_MODEL):
        return f"{rate:g} is high: {usual}; higher rates diverge or end in gibberish"
    if rate < least:
        return f"{rate:g} is low: {usual}; the loss may stay flat"
    return ""


def _drift(spec: DPOJobSpec, parameters: int | None) -> str:
    if spec.method.name not in _SUMS or (parameters is not None and parameters < SMALL_MODEL):
        return ""
    beta = spec.method.strength
    if spec.learning_rate < HIGH_RATE or not BETAS[0] <= beta < LEAST_BETA:
        return ""
    return (
        f"{beta:g} with a learning rate of {spec.learning_rate:g}: the policy may drift far from its reference early; with rates from "
        f"{HIGH_RATE:g} keep it at {LEAST_BETA:g} or above"
    )


def _epochs(spec: DPOJobSpec, _: int | None) -> str:
    if spec.training.epochs <= MOST_EPOCHS or spec.training.max_steps is not None:
        return ""
    return f"{spec.training.epochs:g} passes over the pairs: 1 to {MOST_EPOCHS} are usual; more raise the metrics and lower the quality of answers"


def _batch(spec: DPOJobSpec, _: int | None) -> str:
    pairs, (least, most) = spec.training.global_batch_size, BATCHES
    if pairs < least:
        return f"{pairs} pairs in a step give a noisy gradient: 128 to {most} are usual, and {least} the least that guides use"
    if pairs > most:
        return f"{pairs} pairs in a step leave few steps: 128 to {most} are usual"
    return ""


def _warmup(spec: DPOJobSpec, _: int | None) -> str:
    if spec.training.warmup_ratio > 0:
        return ""
    return "0 lets the first steps, whose gradient is that of untrained rewards, be as large as any; 0.1 is usual"


def _template(spec: DPOJobSpec, _: int | None) -> str:
    name = spec.model.name.lower()
    plain = [dataset for dataset in (spec.data.train, *spec.data.mixture) if dataset.format in ("pairs", "dialogue")]
    if not plain or not any(part in name for part in _CHAT_NAMES):
        return ""
    return (
        f"{plain[0].format} is plain text without the chat template, and the model's name says that it was tuned on chats; text in another "
        "form than it was tuned with ends in gibberish. Use messages, and look at the tokens with dpo preview"
    )


def _reference(spec: DPOJobSpec, _: int | None) -> str:
    reference = spec.model.reference
    if reference is None or not spec.method.needs_reference:
        return ""
    if (reference.name, reference.revision) == (spec.model.name, spec.model.revision) and spec.model.adapter is None:
        return ""
    return "the reference must be exactly the checkpoint that training starts from; leave it out unless you know that it differs on purpose"


def _always(source: str) -> Callable[[DPOJobSpec], str]:
    return lambda _: source


RULES: tuple[_Rule, ...] = (
    _Rule("method.beta", _always(f"{TABLE}; {NOTES}"), _beta),
    _Rule("method.beta", _always(f"{NOTES}, reference drift"), _drift),
    _Rule("training.learningRate", _source_of_rates, _rate),
    _Rule("training.epochs", _always(f"{TABLE}; {NOTES}"), _epochs),
    _Rule("training.globalBatchSize", _always(f"{TABLE}; {NOTES}"), _batch),
    _Rule("training.warmupRatio", _always(TABLE), _warmup),
    _Rule("data.train.format", _always(TROUBLES), _template),
    _Rule("model.reference", _always(f"{NOTES}, reference model"), _reference),
)


def advice(spec: DPOJobSpec, parameters: int | None = None) -> list[Advice]:
    """Warnings about a spec, those about any leg of a sweep once. parameters: of the model, None if unknown; the guides' rates are for large models."""
    found = [(rule, leg, rule.says(leg, parameters)) for leg in legs_of(spec) for rule in RULES]
    return list(dict.fromkeys(Advice(rule.field, text, rule.source(leg)) for rule, leg, text in found if text))
