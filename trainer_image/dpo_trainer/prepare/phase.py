"""The prepare phase: fetch the model and the data once, check them, tokenize, and record what was made.

One process, no GPU. Whatever is wrong with the inputs fails here, before any GPU is held; ranks then read the work folder
alone and need neither network nor tokens. The order is cheapest first: the model's small files, then the data, then the
weights. prepared.json is written last; with it, a second run returns at once.
"""

import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dpo_operator.api.reports import DatasetReport, TokenReport
from dpo_operator.api.types import DPOJob, DPOJobSpec
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.data.report import build
from dpo_trainer.data.tokens.truncation import Limits
from dpo_trainer.prepare import record
from dpo_trainer.prepare.inputs import Inputs
from dpo_trainer.prepare.model import (
    StagedModel,
    check_fits,
    commit_model,
    fetch_config,
    fetch_judge,
    fetch_reference,
    fetch_weights,
    load_pair_tokenizer,
    model_shape,
    originals_of,
)
from dpo_trainer.prepare.originals import ADAPTER, JUDGE, MODEL, REFERENCE, edited
from dpo_trainer.prepare.pairs import Pairs, download_folder, read_data, report_sources
from dpo_trainer.pretrained import reward
from dpo_trainer.pretrained.adapters import FOLDER as ADAPTER_FOLDER
from dpo_trainer.pretrained.checks import context_length
from dpo_trainer.pretrained.files import TOKENIZER_FILES
from dpo_trainer.runtime import volume_errors
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration, volume_error
from dpo_trainer.runtime.volume_errors import Kind
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.sources import retrying

log = logging.getLogger(__name__)

_VOLUME = frozenset({Kind.FULL, Kind.QUOTA, Kind.FILE_TOO_LARGE, Kind.READ_ONLY, Kind.FAILING})


def run(job: DPOJob, work: WorkDir, inputs: Inputs) -> DatasetReport:
    """Fill the work folder for training: model, tokenized pairs, dropped.jsonl and, last, prepared.json.

    A folder that was prepared from the same model and data settings, and whose files are intact, is kept as it is.
    Raises TrainerError with the exit code of the cause.
    """
    with _known_errors(work.root):
        work.root.mkdir(parents=True, exist_ok=True)
        key = record.spec_hash(job.spec)
        inputs.progress("looking for earlier work", 0.0)
        report = record.finished(work, key)
        if report is not None and (what := edited(job.spec, record.Prepared.read(work), inputs)) is not None:
            record.refuse_edited(work, what)
            log.warning("%s when it was prepared; preparing again", what)
            report = None
        if report is None:
            record.refuse_other_run(work, key)
            report = _prepare(job.spec, work, key, inputs)
        _check_watched(job.spec, work)
        _check_selection(job.spec, work)
        _check_margin(job.spec, work)
        inputs.progress("prepared", 1.0)
        return report


def _prepare(spec: DPOJobSpec, work: WorkDir, key: str, inputs: Inputs) -> DatasetReport:
    work.prepared.unlink(missing_ok=True)
    model = fetch_config(spec.model, work.root / "model.partial", inputs)
    if spec.method.trains_reward_model:
        reward.check_has_classifier(model.config, model.label)
    adapter = model.adapter
    own_template = adapter.found.template if adapter is not None else None
    tokenizer, template = load_pair_tokenizer(model, spec.model.chat_template or own_template, spec.data)
    reference = None
    if spec.model.reference is not None:
        reference = fetch_reference(spec.model.reference, model, work.root / "reference-model.partial", inputs)
    judged_by = spec.iterative.judge.reward_model if spec.iterative is not None else None
    judge = fetch_judge(judged_by, work.root / "judge-model.partial", inputs) if judged_by is not None else None
    pairs = read_data(spec, work, tokenizer, inputs, context_length(model.config))
    for name, dataset in pairs.datasets().items():
        for staged in (model, reference):
            if staged is not None:
                check_fits(name, dataset, staged)
    inputs.progress("describing the data", 0.5)
    description = _describe(spec, work, pairs)
    inputs.progress("writing the tokens", 0.52)
    _write_tokens(work, pairs)
    weights = fetch_weights(model, spec.model.name, inputs)
    folders = {ADAPTER_FOLDER} if adapter is not None else set[str]()
    commit_model(model.folder, work.model, {*model.small, *model.weights, *folders})
    reference_weights = None
    if reference is not None and spec.model.reference is not None:
        reference_weights = fetch_weights(reference, spec.model.reference.name, inputs)
        commit_model(reference.folder, work.reference_model, {*reference.small, *reference.weights})
    judge_weights = None
    if judge is not None and judged_by is not None:
        judge_weights = fetch_weights(judge, judged_by.name, inputs, reward.check_head)
        commit_model(judge.folder, work.judge_model, {*judge.small, *judge.weights})
    report = _report(pairs, model)
    record.Prepared(
        spec_hash=key,
        report=report,
        model=weights,
        reference_model=reference_weights,
        judge_model=judge_weights,
        tokenizer=record.TokenizerRecord(
            files={name: digest for name, digest in weights.files.items() if name in TOKENIZER_FILES},
            chat_template=hashlib.sha256(template.encode()).hexdigest() if template else None,
            begin=tuple(tokenizer.begin),
            eos=tokenizer.eos,
        ),
        inputs=pairs.records,
        data=_split_records(pairs, description),
        originals={
            **pairs.originals,
            MODEL: originals_of(model, weights),
            ADAPTER: adapter.originals if adapter is not None else {},
            REFERENCE: originals_of(reference, reference_weights)
            if reference is not None and reference_weights is not None
            else {},
            JUDGE: originals_of(judge, judge_weights) if judge is not None and judge_weights is not None else {},
        },
        prepared_by=record.prepared_by(),
        prompts=pairs.prompts.record if pairs.prompts is not None else None,
    ).write(work)
    shutil.rmtree(download_folder(work), ignore_errors=True)
    return report


def _describe(spec: DPOJobSpec, work: WorkDir, pairs: Pairs) -> dict[str, Any]:
    """Write the dataset report; returns its content."""
    train, evaluation = pairs.mixed.train, pairs.mixed.evaluation
    limits = Limits(spec.data.max_length, spec.data.max_prompt_length, spec.data.truncation)
    description = build.build(train, evaluation, report_sources(spec.data, pairs), limits)
    build.write(work, description, train, evaluation)
    return description


def _write_tokens(work: WorkDir, pairs: Pairs) -> None:
    for folder in (work.eval_data, work.prompts):
        shutil.rmtree(folder, ignore_errors=True)
    if pairs.prompts is not None:
        pairs.prompts.made.save(work.prompts)
    pairs.mixed.train.save(work.train_data)
    if pairs.mixed.evaluation is not None:
        pairs.mixed.evaluation.save(work.eval_data)


def _split_records(pairs: Pairs, description: dict[str, Any]) -> record.SplitRecords:
    splits = description["splits"]
    train = record.SplitRecord(digest=pairs.mixed.train.digest, **splits["train"])
    if pairs.mixed.evaluation is None:
        return record.SplitRecords(train=train, eval=None)
    shared = description["overlap"]["prompts"]
    digest = pairs.mixed.evaluation.digest
    return record.SplitRecords(
        train=train, eval=record.SplitRecord(digest=digest, **splits["eval"], prompts_in_train=shared)
    )


def _report(pairs: Pairs, model: StagedModel) -> DatasetReport:
    dropped: Counter[str] = Counter()
    for split in pairs.splits.values():
        dropped.update(split.dropped)
    train, evaluation = pairs.mixed.train, pairs.mixed.evaluation
    prompt, chosen, rejected = (round(float(mean), 2) for mean in train.lengths.mean(axis=0))
    longest = float(train.lengths.sum(axis=1).max())
    return DatasetReport(
        train_pairs=len(train),
        eval_pairs=len(evaluation) if evaluation is not None else 0,
        dropped=dict(sorted(dropped.items())),
        truncated_pairs=sum(split.counts.truncated for split in pairs.splits.values()),
        tokens=TokenReport(prompt=prompt, chosen=chosen, rejected=rejected, longest=longest),
        model=model_shape(model.config),
    )


def _check_watched(spec: DPOJobSpec, work: WorkDir) -> None:
    """Reject early stopping on a margin when the evaluation data have one kind of answers.

    This also runs on a folder that was prepared earlier, because early stopping is no part of spec_hash.
    """
    if spec.early_stopping is None or spec.early_stopping.metric != "eval_reward_margin" or not work.eval_data.is_dir():
        return
    dataset = PairDataset.open(work.eval_data)
    desirable, undesirable = (bool(column.any()) for column in (dataset.lengths[:, 1:] > 0).T)
    if not (desirable and undesirable):
        raise invalid_configuration(
            "spec.earlyStopping.metric: eval_reward_margin is the reward of desirable answers minus that of undesirable ones, and all "
            f"{len(dataset)} evaluation examples are {'desirable' if desirable else 'undesirable'}; use eval_loss or "
            "eval_reward_accuracy, or evaluate on both kinds"
        )


def _check_margin(spec: DPOJobSpec, work: WorkDir) -> None:
    """Reject margins by score where pairs have no scores. Also for a folder that was prepared earlier: the method is no part of spec_hash."""
    if not spec.method.margin_per_score:
        return
    for name, folder in (("training", work.train_data), ("evaluation", work.eval_data)):
        if not (folder / "meta.json").is_file():
            continue
        gaps = PairDataset.open(folder).score_gaps
        if unknown := int(np.isnan(gaps).sum()):
            raise invalid_configuration(
                f"spec.method.marginPerScore needs scores of both answers, and {unknown:,} of {len(gaps):,} {name} pairs have none; name the columns "
                "(columns.chosenScore, columns.rejectedScore), use scored data, or set margin, which is the same for all pairs"
            )


def _check_selection(spec: DPOJobSpec, work: WorkDir) -> None:
    """Reject a selection that these pairs don't allow, before any GPU is held. Pairs of rounds are not there yet.

    This also runs on a folder that was prepared earlier, because the selection is no part of spec_hash.
    """
    training, selection = spec.training, spec.training.selection
    if selection is None or spec.iterative is not None:
        return
    dataset = PairDataset.open(work.train_data)
    batch = training.global_batch_size
    if problem := selection.problem(len(dataset), batch, epochs=training.epochs, max_steps=training.max_steps):
        raise invalid_configuration(f"spec.training.selection: {problem}")
    unknown = 0 if selection.has_pass else int(np.isnan(dataset.score_gaps).sum())
    if unknown:
        raise invalid_configuration(
            f"spec.training.selection.by: scoreGap needs scores of both answers, and {unknown:,} of {len(dataset):,} training pairs have none; name "
            "the columns (columns.chosenScore, columns.rejectedScore), use scored data, or rank by rewardGap"
        )


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
    if volume_errors.kind(error) in _VOLUME or str(error.filename or "").startswith(str(root)):
        return volume_error(f"{root}: {error.strerror or error}; check that the volume is writable and has space")
    return None
