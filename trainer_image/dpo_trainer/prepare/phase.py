"""The prepare phase: fetch the model and the data once, check them, tokenize, and write down what was made.

One process, no GPU. Whatever is wrong with the inputs fails here, before any GPU is held; ranks then read the work folder
alone and need neither network nor tokens. The order is cheapest first: the model's small files, then the data, then the
weights. prepared.json is written last; with it, a second run returns at once.
"""

import errno
import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dpo_operator.api.data import Data, Dataset
from dpo_operator.api.models.config import ModelConfigError, shape_of
from dpo_operator.api.models.shape import ModelShape
from dpo_operator.api.reports import DatasetReport, TokenReport
from dpo_operator.api.types import DPOJob, DPOJobSpec
from dpo_trainer.data import hub_rows, mixture, rows
from dpo_trainer.data import statistics as datastats
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.data.report import build as datareport
from dpo_trainer.data.splits import Reading, Split, check_filters, read_split
from dpo_trainer.data.tokens.tokenization import PairTokenizer, load_tokenizer
from dpo_trainer.data.tokens.truncation import Limits
from dpo_trainer.prepare import record as prepared
from dpo_trainer.pretrained import checks as modelcheck
from dpo_trainer.pretrained import files as modelfiles
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration, volume_error
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.sources import hub, retrying
from dpo_trainer.sources import resolve as sources
from dpo_trainer.sources.cache import Cache

log = logging.getLogger(__name__)
Progress = Callable[[str, float], None]


def run(
    job: DPOJob, work: WorkDir, *, claims: Path, token: str | None, progress: Progress, cache: Path | None = None
) -> DatasetReport:
    """Fill the work folder for training: model, tokenized pairs, dropped.jsonl and, last, prepared.json.

    claims: folder in which claims are mounted by name. token: of the hub; None means anonymous, or the login of this machine.
    progress: called with what is being done and the share of the phase that is done, 0 to 1.
    cache: folder of the hub's files that other jobs use too.
    A folder that was prepared from the same model and data settings, and whose files are intact, is kept as it is.
    Raises TrainerError with the exit code of the cause.
    """
    with _known_errors(work.root):
        work.root.mkdir(parents=True, exist_ok=True)
        key = prepared.spec_hash(job.spec)
        progress("looking for earlier work", 0.0)
        report = prepared.finished(work, key)
        if report is None:
            prepared.refuse_other_run(work, key)
            report = _prepare(job.spec, work, key, claims, token, progress, cache and Cache(cache))
        _check_watched(job.spec, work)
        progress("prepared", 1.0)
        return report


def _prepare(
    spec: DPOJobSpec,
    work: WorkDir,
    key: str,
    claims: Path,
    token: str | None,
    progress: Progress,
    cache: Cache | None,
) -> DatasetReport:
    work.prepared.unlink(missing_ok=True)
    staging = work.root / "model.partial"
    progress("reading the model's configuration", 0.02)
    model = modelfiles.listing(sources.resolve(spec.model.name, spec.model.revision, claims=claims), token)
    small = modelfiles.small_files(model.sizes, model.label)
    modelfiles.fetch(model, small, staging, token, cache, lambda text, _: progress(text, 0.02))
    weights = modelfiles.weight_files(staging, model.sizes, model.label)
    config = modelcheck.check_config(staging, model.label)
    if spec.model.chat_template is not None:
        (staging / "chat_template.jinja").write_text(spec.model.chat_template, encoding="utf-8")
        small = [*(name for name in small if name != "chat_template.jinja"), "chat_template.jinja"]
    loaded = load_tokenizer(staging, model.label, spec.model.chat_template)
    limits = Limits(spec.data.max_length, spec.data.max_prompt_length, spec.data.truncation)
    tokenizer = PairTokenizer(loaded, limits, modelcheck.end_tokens(staging, config, model.label))

    splits, inputs = _read_data(spec, work, tokenizer, claims, token, progress, cache)
    mixed = mixture.mix(spec.data, spec.training.seed, {name: split.dataset for name, split in splits.items()})
    train, evaluation = mixed.train, mixed.evaluation
    for name, count in mixed.used.items():
        inputs[name] |= {"used": count, "held_out": mixed.held_out[name]}
    for name, dataset in (("train", train), ("eval", evaluation)):
        if dataset is not None:
            _check_fits(name, dataset, config, model.label)
    progress("describing the data", 0.5)
    described = datareport.build(train, evaluation, _sources(spec.data, splits, mixed), limits)
    datareport.write(work, described, train, evaluation)
    progress("writing the tokens", 0.52)
    shutil.rmtree(work.eval_data, ignore_errors=True)
    train.save(work.train_data)
    if evaluation is not None:
        evaluation.save(work.eval_data)

    modelfiles.fetch(model, weights, staging, token, cache, lambda text, share: progress(text, 0.5 + 0.4 * share))
    checked = modelcheck.check_weights(staging, weights, model.label)
    progress("checking the weights", 0.9)
    digests = modelfiles.sha256_of(staging, [*small, *weights])
    if model.snapshot is not None:
        untouched = {name: digest for name, digest in digests.items() if name in model.sizes and name in weights}
        modelfiles.check_against_hub(model.snapshot, staging, untouched)
    _commit_model(staging, work.model, set(digests))

    report = _report(train, evaluation, splits, _model_shape(config))
    template = loaded.chat_template and loaded.get_chat_template()
    prepared.write(work, {
        "version": prepared.VERSION,
        "spec_hash": key,
        "report": report.model_dump(mode="json"),
        "model": {
            "source": spec.model.name, "kind": _kind(model.source), "commit": model.commit,
            "parameters": checked.parameters, "dtypes": checked.dtypes,
            "weights": {name: digests[name] for name in weights},
            "files": {name: digests[name] for name in small},
        },
        "tokenizer": {
            "files": {name: digests[name] for name in small if name in modelfiles.TOKENIZER_FILES},
            "chat_template": hashlib.sha256(template.encode()).hexdigest() if template else None,
            "begin": tokenizer.begin, "eos": tokenizer.eos,
        },
        "inputs": inputs,
        "data": {
            "train": {"digest": train.digest, **described["splits"]["train"]},
            "eval": None if evaluation is None else {
                "digest": evaluation.digest, **described["splits"]["eval"],
                "prompts_in_train": described["overlap"]["prompts"],
            },
        },
    })  # fmt: skip
    shutil.rmtree(_cache(work), ignore_errors=True)
    return report


def _read_data(
    spec: DPOJobSpec,
    work: WorkDir,
    tokenizer: PairTokenizer,
    claims: Path,
    token: str | None,
    progress: Progress,
    cache: Cache | None,
) -> tuple[dict[str, Split], dict[str, Any]]:
    """Tokenized splits by name, and what was read, for prepared.json."""
    data = spec.data
    training = mixture.sources(data)
    wanted = training | ({"eval": data.eval} if data.eval is not None else {})
    splits: dict[str, Split] = {}
    inputs: dict[str, Any] = {}
    work.dropped_rows.parent.mkdir(parents=True, exist_ok=True)
    with work.dropped_rows.open("w", encoding="utf-8") as dropped:
        reading = Reading(data, spec.method.name, tokenizer, dropped)
        for number, (name, dataset) in enumerate(wanted.items()):
            start, width = 0.05 + 0.45 * number / len(wanted), 0.45 / len(wanted)

            def at(share: float, name: str = name, start: float = start, width: float = width) -> None:
                progress(f"reading and tokenizing the {name} pairs", start + width * share)

            def waiting(text: str, start: float = start) -> None:
                progress(text, start)

            at(0.0)
            fetch = partial(cache.fetch, token=token, waiting=waiting) if cache is not None else None
            found, facts = _rows(dataset, data, _cache(work), claims, token, at, fetch)
            split = read_split(name, found, dataset, reading)
            log.info("%s: %d of %d rows kept (%s)", name, len(split.dataset), split.rows, split.format)
            splits[name] = split
            inputs[name] = facts | {
                "rows": split.rows, "format": split.format, "dropped": split.dropped, "pairs": len(split.dataset),
                "truncated": split.counts.truncated, "boundary_merges": split.counts.boundary_merges,
                "special_token_text": split.counts.special_token_text,
            }  # fmt: skip
        prepared.sync(dropped)
    check_filters({name: (dataset, splits[name]) for name, dataset in training.items()}, data)
    return splits, inputs


def _rows(
    spec: Dataset,
    data: Data,
    cache: Path,
    claims: Path,
    token: str | None,
    progress: Callable[[float], None],
    fetch: hub.Fetch | None,
) -> tuple[rows.Rows, dict[str, Any]]:
    source = sources.resolve(spec.source, spec.revision, claims=claims)
    facts = {"source": spec.source, "kind": _kind(source), "weight": spec.weight}
    if isinstance(source, sources.HubSource):
        conditions = {condition.column for condition in data.filters.where}
        table = hub_rows.dataset(source, spec, conditions, cache, token, fetch)
        return table, facts | {"split": spec.split, "config": spec.config, "commit": table.commit}
    return rows.FileRows(source, progress), facts | {
        "files": {name: source.sizes[name] for name in rows.data_files(source)}
    }


def _kind(source: sources.Source) -> str:
    return "hub" if isinstance(source, sources.HubSource) else source.kind


def _sources(data: Data, splits: dict[str, Split], mixed: mixture.Mixed) -> list[datareport.Source]:
    """What was read, for the dataset report."""
    given = mixture.sources(data)
    found = []
    for name, split in splits.items():
        spec = given.get(name) or data.eval
        assert spec is not None
        left = len(split.dataset) - mixed.held_out.get(name, 0)
        found.append(
            datareport.Source(
                split="eval" if name == "eval" else "train",
                name=spec.source,
                rows=split.rows,
                dropped=split.dropped,
                boundary_merges=split.counts.boundary_merges,
                special_token_text=split.counts.special_token_text,
                kept=split.dataset,
                repeats=max(0, mixed.used.get(name, 0) - left),
                glued=split.glued,
                repeated=split.repeated,
            )
        )
    return found


def _check_fits(name: str, dataset: PairDataset, config: dict[str, Any], label: str) -> None:
    context, longest = modelcheck.context_length(config), datastats.longest(dataset)
    if context is not None and longest > context:
        raise invalid_configuration(
            f"{name}: the longest pair has {longest} tokens, and {label} has positions for {context} "
            f"(config.json); set data.maxLength to {context} or less"
        )
    vocabulary = modelcheck.vocabulary_size(config)
    if vocabulary is not None and dataset.largest_token >= vocabulary:
        raise invalid_configuration(
            f"{name}: the tokenizer gives token {dataset.largest_token}, and {label} has embeddings for {vocabulary} "
            "(vocab_size in config.json); the tokenizer is not this model's"
        )


def _check_watched(spec: DPOJobSpec, work: WorkDir) -> None:
    """Refuse to watch a margin that no evaluation can have. The data may be from an earlier run with other settings."""
    if spec.early_stopping is None or spec.early_stopping.metric != "eval_reward_margin" or not work.eval_data.is_dir():
        return
    dataset = PairDataset.open(work.eval_data)
    desirable, undesirable = (dataset.lengths[:, 1:] > 0).any(axis=0)
    if not (desirable and undesirable):
        raise invalid_configuration(
            "spec.earlyStopping.metric: eval_reward_margin is the reward of desirable answers minus that of undesirable ones, and all "
            f"{len(dataset)} evaluation examples are {'desirable' if desirable else 'undesirable'}; use eval_loss or "
            "eval_reward_accuracy, or evaluate on both kinds"
        )


def _model_shape(config: dict[str, Any]) -> ModelShape | None:
    """What the job's needs are estimated from; a configuration that does not say enough is no error."""
    try:
        return shape_of(config)
    except ModelConfigError as error:
        log.info("memory is not estimated: %s", error)
        return None


def _report(
    train: PairDataset, evaluation: PairDataset | None, splits: dict[str, Split], model: ModelShape | None
) -> DatasetReport:
    dropped: Counter[str] = Counter()
    for split in splits.values():
        dropped.update(split.dropped)
    return DatasetReport(
        train_pairs=len(train),
        eval_pairs=len(evaluation) if evaluation is not None else 0,
        dropped=dict(sorted(dropped.items())),
        truncated_pairs=sum(split.counts.truncated for split in splits.values()),
        tokens=_token_report(train),
        model=model,
    )


def _token_report(train: PairDataset) -> TokenReport:
    prompt, chosen, rejected = (round(float(mean), 2) for mean in train.lengths.mean(axis=0))
    longest = float(train.lengths.sum(axis=1).max())
    return TokenReport(prompt=prompt, chosen=chosen, rejected=rejected, longest=longest)


def _commit_model(staging: Path, target: Path, names: set[str]) -> None:
    """Move a complete folder into place, without what does not belong to the model."""
    hub.discard_download_state(staging)
    for path in staging.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(target, ignore_errors=True)
    staging.replace(target)


def _cache(work: WorkDir) -> Path:
    return work.root / "data" / "hub.partial"


@contextmanager
def _known_errors(root: Path) -> Iterator[None]:
    """Turn errors of the work volume, and of a source that fails while it is read, into TrainerErrors; others pass through."""
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        if (known := _volume_error(error, root) or retrying.explain(error, "reading the inputs")) is not None:
            raise known from error
        raise


def _volume_error(error: Exception, root: Path) -> TrainerError | None:
    if not isinstance(error, OSError):
        return None
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
    if full or str(error.filename or "").startswith(str(root)):
        return volume_error(f"{root}: {error.strerror or error}; check that the volume is writable and has space")
    return None
