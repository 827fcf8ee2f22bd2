"""Reward models: which architectures have one, and whether a folder holds one that was trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dpo_trainer.pretrained import checks
from dpo_trainer.runtime.errors import invalid_configuration

# The last layer of transformers' classifiers on decoders, which scores the last token's state.
HEAD: Final = "score"
# Those of classifiers on encoders, which read a text as a whole.
_ENCODERS: Final = ("classifier.weight", "classifier.out_proj.weight", "classification_head.out_proj.weight")


def check_has_classifier(config: Mapping[str, Any], label: str) -> None:
    """Raise TrainerError INVALID_CONFIGURATION for a language model that transformers has no classifier for."""
    if (kind := config.get("model_type")) not in _classifiers():
        raise invalid_configuration(
            f"{label}: the method reward-model makes a sequence classifier of the model, and transformers has none for model_type {kind!r}; use "
            "another model"
        )


def check_config(folder: Path, label: str) -> dict[str, Any]:
    """Read config.json of a reward model and refuse what can't judge.

    Raises TrainerError INVALID_CONFIGURATION: for code of its own, quantized weights, and anything but a sequence classifier of transformers.
    """
    config = checks.check_safe(folder, label)
    known, named = _classifiers().get(str(config.get("model_type"))), config.get("architectures") or []
    if known is None or named != [known]:
        raise invalid_configuration(
            f"{label}: expected a reward model, which is a sequence classifier ({known or 'AutoModelForSequenceClassification'}), found "
            f"{', '.join(map(str, named)) or 'no architecture'} in config.json; the export of a job with the method reward-model is one"
        )
    return config


def check_head(weights: checks.Weights, label: str) -> None:
    """Refuse a head that is not there, which transformers would fill with random numbers, and one with several outputs.

    Raises TrainerError INVALID_CONFIGURATION.
    """
    shape = weights.shapes.get(f"{HEAD}.weight")
    if shape is None and (found := [name for name in _ENCODERS if name in weights.shapes]):
        raise invalid_configuration(
            f"{label}: expected a reward model on a decoder, whose head is {HEAD}.weight, found {found[0]}, that of a classifier on an encoder; "
            "use another reward model"
        )
    if shape is None:
        raise invalid_configuration(
            f"{label}: the weights have no trained head ({HEAD}.weight), and a random one would judge at random; use a trained reward model"
        )
    if shape[0] != 1:
        raise invalid_configuration(
            f"{label}: {HEAD}.weight has {shape[0]} outputs, and a reward is one number; use a reward model with one output"
        )


def _classifiers() -> dict[str, str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    return dict(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
