"""The data's way into the work folder: rows of all sources are read, tokenized, mixed and checked."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dpo_operator.api.data import Data, Dataset
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.data import hub_rows, mixture, rows
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.data.report.build import SourceReport
from dpo_trainer.data.splits import Reading, Split, check_filters, read_split
from dpo_trainer.data.tokens.tokenization import PairTokenizer
from dpo_trainer.prepare import prompts
from dpo_trainer.prepare.inputs import Inputs, kind
from dpo_trainer.prepare.originals import originals
from dpo_trainer.prepare.prompts import RoundPrompts
from dpo_trainer.prepare.record import InputRecord, Original
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.sources import resolve
from dpo_trainer.sources.kinds import HubSource

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairs:
    """Tokenized pairs: those of each source, those to train and evaluate on, and the records of the sources and of their files.

    prompts: that rounds answer; None without rounds.
    """

    splits: dict[str, Split]
    mixed: mixture.Mixed
    records: dict[str, InputRecord]
    originals: dict[str, dict[str, Original]]
    prompts: RoundPrompts | None = None

    def datasets(self) -> dict[str, PairDataset]:
        """Pairs to train on and, if there are any, to evaluate on."""
        train, evaluation = self.mixed.train, self.mixed.evaluation
        return {"train": train} | ({} if evaluation is None else {"eval": evaluation})


def download_folder(work: WorkDir) -> Path:
    """Where the datasets library keeps its files during prepare."""
    return work.root / "data" / "hub.partial"


def read_data(
    spec: DPOJobSpec, work: WorkDir, tokenizer: PairTokenizer, inputs: Inputs, context: int | None = None
) -> Pairs:
    """Read and tokenize all sources, write dropped.jsonl, hold pairs out and mix. context: tokens that the model reads, None if unknown.

    Raises TrainerError.
    """
    data = spec.data
    training = mixture.sources(data)
    wanted = training | ({"eval": data.eval} if data.eval is not None else {})
    splits: dict[str, Split] = {}
    records: dict[str, InputRecord] = {}
    known: dict[str, dict[str, Original]] = {}
    asked, columns = prompts.collector(spec), _conditions(data) | prompts.answer_columns(spec)
    work.dropped_rows.parent.mkdir(parents=True, exist_ok=True)
    with work.dropped_rows.open("w", encoding="utf-8") as dropped:
        reading = Reading(data, spec.method.name, tokenizer, dropped, asked=asked)
        for number, (name, dataset) in enumerate(wanted.items()):
            report = partial(_report_share, inputs, name, 0.05 + 0.45 * number / len(wanted), 0.45 / len(wanted))
            report(0.0)
            found, facts, known[name] = _rows(dataset, columns, download_folder(work), inputs, report)
            split = read_split(name, found, dataset, reading)
            log.info("%s: %d of %d rows kept (%s)", name, len(split.dataset), split.rows, split.format)
            splits[name] = split
            records[name] = _record(dataset, split, facts)
        own = None
        if (source := prompts.source(spec)) is not None:
            report = partial(_report_share, inputs, "prompts", 0.5, 0.0)
            rows_found, _, known["prompts"] = _rows(
                source, prompts.answer_columns(spec), download_folder(work), inputs, report
            )
            own = prompts.read(spec, source, rows_found, tokenizer, dropped)
        dropped.flush()
        os.fsync(dropped.fileno())
    check_filters({name: (dataset, splits[name]) for name, dataset in training.items()}, data)
    mixed = mixture.mix(data, spec.training.seed, {name: split.dataset for name, split in splits.items()})
    for name, count in mixed.used.items():
        records[name] = records[name].model_copy(update={"used": count, "held_out": mixed.held_out[name]})
    evaluated = ["eval"] if data.eval is not None else [name for name, count in mixed.held_out.items() if count]
    made = prompts.divide(
        spec,
        asked.found.values() if asked is not None else own,
        mixed.evaluation,
        context,
        plain_evaluation=bool(evaluated) and not any(splits[name].counts.templated for name in evaluated),
    )
    return Pairs(splits, mixed, records, known, made)


def _report_share(inputs: Inputs, name: str, start: float, width: float, share: float, text: str | None = None) -> None:
    """Report progress of one source. start, width: its part of the phase. share: finished part of the source, 0 to 1."""
    inputs.progress(text or f"reading and tokenizing the {name} pairs", start + width * share)


def _conditions(data: Data) -> set[str]:
    """Columns that are read for the filters."""
    return {condition.column for condition in data.filters.where}


def _rows(
    spec: Dataset, conditions: set[str], cache: Path, inputs: Inputs, report: Callable[..., None]
) -> tuple[rows.Rows, dict[str, Any], dict[str, Original]]:
    """Rows of a source, fields of its InputRecord (which files or which commit they come from), and its files as they are now.

    conditions: columns that are read besides those of the pairs.
    """
    elsewhere = inputs.elsewhere(cache / "objects", lambda text: report(0.0, text))
    source = resolve(spec.source, spec.revision, claims=inputs.claims, elsewhere=elsewhere)
    if not isinstance(source, HubSource):
        files = {name: source.sizes[name] for name in rows.data_files(source, spec.split)}
        known = originals(source, files)
        return rows.FileRows(source, report, spec.split), {"kind": kind(source), "files": files}, known
    fetch = None
    if inputs.cache is not None:
        fetch = partial(inputs.cache.fetch, token=inputs.token, waiting=lambda text: report(0.0, text))
    table = hub_rows.dataset(source, spec, conditions, cache, inputs.token, fetch)
    return table, {"kind": kind(source), "split": spec.split, "config": spec.config, "commit": table.commit}, {}


def _record(dataset: Dataset, split: Split, facts: dict[str, Any]) -> InputRecord:
    return InputRecord(
        source=dataset.source,
        weight=dataset.weight,
        rows=split.rows,
        format=split.format,
        dropped=split.dropped,
        pairs=len(split.dataset),
        truncated=split.counts.truncated,
        boundary_merges=split.counts.boundary_merges,
        special_token_text=split.counts.special_token_text,
        **facts,
    )


def report_sources(data: Data, pairs: Pairs) -> list[SourceReport]:
    """The sources as the dataset report describes them."""
    specs = mixture.sources(data)
    mixed = pairs.mixed
    found = []
    for name, split in pairs.splits.items():
        spec = specs.get(name) or data.eval
        assert spec is not None
        left = len(split.dataset) - mixed.held_out.get(name, 0)
        found.append(
            SourceReport(
                split="eval" if name == "eval" else "train",
                name=spec.source,
                rows=split.rows,
                dropped=split.dropped,
                boundary_merges=split.counts.boundary_merges,
                special_token_text=split.counts.special_token_text,
                kept=split.dataset,
                repeats=max(0, mixed.used.get(name, 0) - left),
                unseparated=split.unseparated,
                prompt_repeated=split.prompt_repeated,
                lost_reasoning=split.counts.lost_reasoning,
                features=split.features,
            )
        )
    return found
