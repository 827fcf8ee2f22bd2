"""The model's way into the work folder: its small files first, its weights after the data."""

import logging
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_operator.api.data import Data
from dpo_operator.api.iterative import RewardModel
from dpo_operator.api.model import Model, ReferenceModel
from dpo_operator.api.models.config import ModelConfigError, shape_of
from dpo_operator.api.models.shape import ModelShape
from dpo_trainer.data import statistics
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.data.tokens.tokenization import PairTokenizer, load_tokenizer
from dpo_trainer.data.tokens.truncation import Limits
from dpo_trainer.prepare.inputs import Inputs, kind
from dpo_trainer.prepare.originals import originals, times
from dpo_trainer.prepare.record import AdapterRecord, ModelRecord, Original
from dpo_trainer.pretrained import adapters, checks, files, reward
from dpo_trainer.pretrained.sizes import check_sizes
from dpo_trainer.runtime.errors import invalid_configuration
from dpo_trainer.runtime.untrusted import Untrusted
from dpo_trainer.sources import hub, resolve

log = logging.getLogger(__name__)

_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class StagedAdapter:
    """An adapter whose files are in the model's folder. names: of its files there. found: what they describe. originals: of its files."""

    listing: files.ModelListing
    names: tuple[str, ...]
    found: adapters.AdapterFiles
    originals: dict[str, Original]


@dataclass(frozen=True)
class StagedModel:
    """A model of which all files but the weights are in a folder.

    small, weights: names of files. config: the content of config.json. originals: of the small files.
    modified: when the weights were changed last, see originals.times. adapter: the one that training starts from.
    """

    listing: files.ModelListing
    folder: Path
    small: tuple[str, ...]
    weights: tuple[str, ...]
    config: dict[str, Any]
    originals: dict[str, Original]
    modified: dict[str, int]
    adapter: StagedAdapter | None = None

    @property
    def label(self) -> str:
        """How messages name the model."""
        return self.listing.label


def fetch_config(
    spec: Model, folder: Path, inputs: Inputs, check: Callable[[Path, str], dict[str, Any]] = checks.check_config
) -> StagedModel:
    """Fetch and check all files but the weights. check: reads config.json and refuses a wrong model. Raises TrainerError."""
    if spec.chat_template is not None and "{{" not in spec.chat_template:
        raise invalid_configuration(
            f"model.chatTemplate has no {{{{ … }}}}, and so would write the same for all chats; found {_beginning(spec.chat_template)}. It "
            "takes a template's text, not a name or a path: copy the content of a chat_template.jinja, or leave the field out for the "
            "model's own"
        )
    inputs.progress("reading the model's configuration", 0.02)
    elsewhere = inputs.elsewhere(None, lambda text: inputs.progress(text, 0.02))
    source = resolve(spec.name, spec.revision, claims=inputs.claims, elsewhere=elsewhere)
    listing = files.listing(source, inputs.token)
    small = files.small_files(listing.sizes, listing.label)
    known = originals(listing.source, small)
    modified = times(listing.source, [name for name in listing.sizes if name.endswith(".safetensors")])
    files.fetch(listing, small, folder, inputs.token, inputs.cache, lambda text, _: inputs.progress(text, 0.02))
    weights = files.weight_files(folder, listing.sizes, listing.label)
    config = check(folder, listing.label)
    adapter = _fetch_adapter(spec, folder, inputs) if spec.adapter is not None else None
    template = spec.chat_template or (adapter.found.template if adapter is not None else None)
    if template is not None:
        (folder / _TEMPLATE).write_text(template, encoding="utf-8")
        small = [*(name for name in small if name != _TEMPLATE), _TEMPLATE]
    return StagedModel(listing, folder, tuple(small), tuple(weights), config, known, modified, adapter)


def _fetch_adapter(spec: Model, folder: Path, inputs: Inputs) -> StagedAdapter:
    """Fetch and check the adapter that training starts from. Raises TrainerError."""
    assert spec.adapter is not None
    target = folder / adapters.FOLDER
    elsewhere = inputs.elsewhere(None, lambda text: inputs.progress(text, 0.03))
    source = resolve(spec.adapter.name, spec.adapter.revision, claims=inputs.claims, elsewhere=elsewhere)
    listing = files.listing(source, inputs.token)
    names = adapters.file_names(listing.sizes, listing.label)
    known = originals(listing.source, names)
    files.fetch(listing, names, target, inputs.token, inputs.cache, lambda text, _: inputs.progress(text, 0.03))
    hub.discard_download_state(target)
    for path in target.iterdir():
        if path.name not in names:  # of an adapter that was fetched before
            path.unlink()
    found = adapters.read(target, listing.label)
    if listing.snapshot is not None:
        files.check_against_hub(listing.snapshot, target, files.sha256_of(target, names))
    if found.template is not None and spec.chat_template is None:
        inputs.progress("the chat template is the adapter's", 0.03)
    return StagedAdapter(listing, tuple(f"{adapters.FOLDER}/{name}" for name in names), found, known)


def _beginning(template: str) -> str:
    return repr(template[:40] + ("…" if len(template) > 40 else ""))


def load_pair_tokenizer(model: StagedModel, chat_template: str | None, data: Data) -> tuple[PairTokenizer, str | None]:
    """Tokenizer of a staged model, and the chat template in use; None without one."""
    loaded = load_tokenizer(model.folder, model.label, chat_template)
    limits = Limits(data.max_length, data.max_prompt_length, data.truncation)
    with Untrusted(f"{model.label}: trying the tokenizer"):
        tokenizer = PairTokenizer(
            loaded, limits, checks.end_tokens(model.folder, model.config, model.label), data.template
        )
    return tokenizer, loaded.get_chat_template() if loaded.chat_template else None


def check_fits(name: str, dataset: PairDataset, model: StagedModel) -> None:
    """Raise INVALID_CONFIGURATION when a split has longer pairs or larger token ids than the model can read."""
    context, longest = checks.context_length(model.config), statistics.longest(dataset)
    if context is not None and longest > context:
        raise invalid_configuration(
            f"{name}: the longest pair has {longest} tokens, and {model.label} has positions for {context} "
            f"(config.json); set data.maxLength to {context} or less"
        )
    vocabulary = checks.vocabulary_size(model.config)
    if vocabulary is not None and dataset.largest_token >= vocabulary:
        raise invalid_configuration(
            f"{name}: the tokenizer gives token {dataset.largest_token}, and {model.label} has embeddings for {vocabulary} "
            "(vocab_size in config.json); the tokenizer is not this model's"
        )


def fetch_weights(
    model: StagedModel,
    source: str,
    inputs: Inputs,
    check: Callable[[checks.Weights, str], None] = lambda *_: None,
) -> ModelRecord:
    """Fetch and check the weights. source: the model as the job names it. check: refuses wrong ones by their names. Raises TrainerError."""
    listing = model.listing
    files.fetch(
        listing,
        model.weights,
        model.folder,
        inputs.token,
        inputs.cache,
        lambda text, share: inputs.progress(text, 0.5 + 0.4 * share),
    )
    checked = checks.check_weights(model.folder, model.weights, model.label)
    check(checked, model.label)
    check_sizes(model.config, checked.shapes, model.label)
    inputs.progress("checking the weights", 0.9)
    adapter = model.adapter
    weights, small = list(model.weights), list(model.small)
    for name in adapter.names if adapter is not None else ():
        (weights if name.endswith(adapters.WEIGHTS) else small).append(name)
    digests = files.sha256_of(model.folder, [*small, *weights])
    if listing.snapshot is not None:
        files.check_against_hub(
            listing.snapshot, model.folder, {name: digests[name] for name in model.weights if name in listing.sizes}
        )
    return ModelRecord(
        source=source,
        kind=kind(listing.source),
        commit=listing.commit,
        parameters=checked.parameters,
        dtypes=checked.dtypes,
        weights={name: digests[name] for name in weights},
        files={name: digests[name] for name in small},
        adapter=None
        if adapter is None
        else AdapterRecord(
            source=adapter.listing.label,
            kind=kind(adapter.listing.source),
            commit=adapter.listing.commit,
            base=adapter.found.base,
        ),
    )


def originals_of(model: StagedModel, record: ModelRecord) -> dict[str, Original]:
    """What is recorded of the files that the model was read from."""
    weights = {name: digest for name, digest in record.weights.items() if name in model.modified}
    return model.originals | {
        name: Original(size=model.listing.sizes[name], modified=model.modified[name], sha256=digest)
        for name, digest in weights.items()
    }


def fetch_reference(spec: ReferenceModel, policy: StagedModel, folder: Path, inputs: Inputs) -> StagedModel:
    """Fetch and check all files of another reference model but the weights.

    Raises TrainerError, INVALID_CONFIGURATION when the two models do not mean the same by a token.
    """
    model = fetch_config(Model(name=spec.name, revision=spec.revision), folder, inputs)
    with Untrusted(f"{model.label}: comparing the tokenizers"):
        ours, theirs = (load_tokenizer(one.folder, one.label).get_vocab() for one in (policy, model))
        different = [token for token, number in ours.items() if theirs.get(token) != number]
    if different:
        token = min(different, key=ours.__getitem__)
        raise invalid_configuration(
            f"spec.model.reference: {model.label} has another tokenizer: {len(different)} of {len(ours)} tokens differ, such as {token[:80]!r}, "
            f"which is {ours[token]} for the policy and {theirs.get(token, 'missing')} there; both must have been trained with the same tokens"
        )
    return model


def fetch_judge(spec: RewardModel, folder: Path, inputs: Inputs) -> StagedModel:
    """Fetch and check all files but the weights of a reward model that judges. Raises TrainerError."""
    model = fetch_config(Model(name=spec.name, revision=spec.revision), folder, inputs, reward.check_config)
    context = checks.context_length(model.config)
    if context is not None and spec.max_length > context:
        raise invalid_configuration(
            f"spec.iterative.judge.rewardModel.maxLength is {spec.max_length}, and {model.label} has positions for {context} (config.json); set "
            f"it to {context} or less"
        )
    return model


def commit_model(staging: Path, target: Path, names: Collection[str]) -> None:
    """Move a complete folder into place, without files that do not belong to the model."""
    hub.discard_download_state(staging)
    for path in staging.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(target, ignore_errors=True)
    staging.replace(target)


def model_shape(config: dict[str, Any]) -> ModelShape | None:
    """The sizes from which memory and time are estimated; None when config.json does not say enough."""
    try:
        return shape_of(config)
    except ModelConfigError as error:
        log.info("memory is not estimated: %s", error)
        return None
