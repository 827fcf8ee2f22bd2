"""The dataset report: rows read and left out, statistics of the tokenized pairs, and warnings.

Written by prepare as data/report.json, data/report.txt and data/report.png. The same data give the same bytes.
"""

import json
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_trainer.data import statistics
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.data.features import Features
from dpo_trainer.data.report import warnings
from dpo_trainer.data.tokens.truncation import Limits
from dpo_trainer.runtime.files import commit
from dpo_trainer.runtime.workdir import WorkDir

WIDTH = 110
NO_PICTURE = "no picture: matplotlib is not installed (pip install matplotlib)"


@dataclass(frozen=True)
class SourceReport:
    """One source of a split, as it was read, before it is mixed with others or pairs are held out.

    split: train or eval. name: the source as the job names it. dropped: rows left out, by reason.
    boundary_merges: pairs of which a token would have spanned the prompt's end.
    special_token_text: pairs whose text holds strings that look like special tokens.
    lost_reasoning: chats of which the template left reasoning out, as data.template.keepReasoning allows.
    unseparated, prompt_repeated: pairs of plain text with nothing between prompt and answers, and with answers that repeat the prompt.
    repeats: pairs that are used again because of the source's weight. features: of the answers' text.
    """

    split: str
    name: str
    rows: int
    dropped: Mapping[str, int]
    boundary_merges: int
    special_token_text: int
    kept: PairDataset
    repeats: int = 0
    unseparated: int = 0
    prompt_repeated: int = 0
    lost_reasoning: int = 0
    features: Features = field(default_factory=Features)


def build(
    train: PairDataset, evaluation: PairDataset | None, sources: Sequence[SourceReport], limits: Limits
) -> dict[str, Any]:
    """The report, ready for JSON: `splits` as they are used, `sources` as they were read, `overlap`, and
    `warnings` as sentences and as `findings`.

    The keys are the format of data/report.json; glued and repeated are SourceReport.unseparated and prompt_repeated.
    """
    datasets = {"train": train} | ({} if evaluation is None else {"eval": evaluation})
    keys = {name: statistics.part_keys(dataset) for name, dataset in datasets.items()}
    described = {name: statistics.describe(dataset, keys[name]) for name, dataset in datasets.items()}
    report: dict[str, Any] = {
        "limits": {
            "max_length": limits.max_length, "max_prompt_length": limits.max_prompt_length, "truncation": limits.truncation,
        },
        "splits": {name: _pairs_used(found, _rows_read(name, sources)) for name, found in described.items()},
        "sources": [_source(source, datasets, described) for source in sources],
        "overlap": statistics.overlap(keys["train"], keys["eval"]) if "eval" in keys else None,
        "kto_weights": statistics.kto_weights(described["train"]),
        "features": _features(sources),
    }  # fmt: skip
    found = warnings.find(report)
    return report | {
        "warnings": [finding.sentence for finding in found],
        "findings": [finding.model_dump(mode="json") for finding in found],
    }


def write(work: WorkDir, report: dict[str, Any], train: PairDataset, evaluation: PairDataset | None) -> None:
    """Write the three files; without matplotlib, a line of text instead of the picture."""
    folder = work.data_report.parent
    folder.mkdir(parents=True, exist_ok=True)
    try:
        from dpo_trainer.data.report.picture import draw

        draw(report, train, evaluation, work.data_report.with_suffix(".png"))
        note = "picture: data/report.png"
    except ImportError:
        work.data_report.with_suffix(".png").unlink(missing_ok=True)
        note = NO_PICTURE
    commit(work.data_report.with_suffix(".txt"), f"{text(report)}\n{note}\n".encode())
    commit(work.data_report, (json.dumps(report, indent=1) + "\n").encode())


def text(report: dict[str, Any]) -> str:
    """The report as lines of text, with the warnings first."""
    lines = ["Data report", ""]
    for warning in report["warnings"]:
        lines += textwrap.wrap(warning, WIDTH, initial_indent="! ", subsequent_indent="  ", break_on_hyphens=False)
    lines += [""] if report["warnings"] else []
    splits: dict[str, Any] = report["splits"]
    reasons = sorted({reason for split in splits.values() for reason in split.get("dropped", {})})
    rows: list[tuple[str, Callable[[Any], str]]] = [
        ("rows read", lambda s: _count(s.get("rows"))),
        *((f"  left out, {reason}", lambda s, r=reason: _count(s.get("dropped", {}).get(r))) for reason in reasons),
        ("pairs", lambda s: _count(s["pairs"] - s["desirable"] - s["undesirable"])),
        ("one answer, desirable", lambda s: _count(s["desirable"])),
        ("one answer, undesirable", lambda s: _count(s["undesirable"])),
        ("different prompts", lambda s: _count(s["distinct_prompts"])),
        ("used again, by weight", lambda s: _count(s.get("repeats"))),
        ("copies of earlier pairs", lambda s: _count(s["duplicate_pairs"])),
        ("reverse of earlier pairs", lambda s: _count(s["contradicting_pairs"])),
        ("truncated", lambda s: _part(s["truncated"], s["pairs"])),
        ("boundary merges", lambda s: _count(s.get("boundary_merges"))),
        ("prompt and answer without a space", lambda s: _count(s.get("glued"))),
        ("answers that repeat the prompt", lambda s: _count(s.get("repeated"))),
        ("text of special tokens", lambda s: _count(s.get("special_token_text"))),
        ("reasoning left out by the template", lambda s: _count(s.get("lost_reasoning"))),
        ("tokens", lambda s: _count(s["tokens"])),
        ("  of these, prompt", lambda s: _percent(s["prompt_share"])),
        *((f"{part} tokens, p50 / p95 / max", lambda s, p=part: _spread(s["length"][p])) for part in ("prompt", "chosen", "rejected")),
        ("longest prompt + answer", lambda s: _count(s["longest"])),
        ("chosen is longer", lambda s: _percent(s["chosen_longer"])),
        ("chosen is shorter", lambda s: _percent(s["chosen_shorter"])),
        ("same length", lambda s: _percent(s["same_length"])),
        ("length-only baseline", lambda s: _percent(s["length_baseline"])),
        ("answers nearly the same", lambda s: _percent(s["near_identical"])),
    ]  # fmt: skip
    table = [["", *splits], *([name, *(value(split) for split in splits.values())] for name, value in rows)]
    # Rows without a value for any split are left out.
    lines += _table([row for row in table if row[0] == "" or any(cell not in ("–", "0") for cell in row[1:])])
    if report["overlap"] is not None:
        found, size = report["overlap"], splits["eval"]["pairs"]
        lines += ["", f"eval pairs with a prompt of train: {_part(found['prompts'], size)}; whole pairs of train: "
                  f"{_part(found['pairs'], size)}"]  # fmt: skip
    if report["kto_weights"] is not None:
        weights = report["kto_weights"]
        lines += ["", "weights that balance kto: method.desirableWeight {desirable:g}, method.undesirableWeight "
                  "{undesirable:g}".format(**weights)]  # fmt: skip
    if len(report["sources"]) > len({source["split"] for source in report["sources"]}):
        lines += ["", *_sources(report["sources"])]
    return "\n".join(lines)


def _rows_read(split: str, sources: Sequence[SourceReport]) -> dict[str, Any]:
    """Sums over a split's sources; empty for pairs that were held out of another split."""
    own = [source for source in sources if source.split == split]
    if not own:
        return {}
    dropped: Counter[str] = Counter()
    for source in own:
        dropped.update(source.dropped)
    return {
        "rows": sum(source.rows for source in own),
        "kept": sum(len(source.kept) for source in own),
        "dropped": dict(sorted(dropped.items())),
        "boundary_merges": sum(source.boundary_merges for source in own),
        "glued": sum(source.unseparated for source in own),
        "repeated": sum(source.prompt_repeated for source in own),
        "special_token_text": sum(source.special_token_text for source in own),
        "lost_reasoning": sum(source.lost_reasoning for source in own),
        "repeats": sum(source.repeats for source in own),
    }


def _features(sources: Sequence[SourceReport]) -> dict[str, Any]:
    """Features of the answers' text by split, over its sources; pairs that were held out of train are among train's."""
    found: dict[str, Features] = {}
    for source in sources:
        found[source.split] = found.get(source.split, Features()).plus(source.features)
    return {split: features.described() for split, features in found.items()}


def _pairs_used(described: Mapping[str, Any], read: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics of a split. Pairs that are repeated because of a weight don't count as copies."""
    copies = described["duplicate_pairs"] - read.get("repeats", 0)
    return {**described, **read, "duplicate_pairs": copies}


def _source(source: SourceReport, datasets: Mapping[str, PairDataset], described: Mapping[str, Any]) -> dict[str, Any]:
    # The only source of a split was described with it, unless pairs were held out.
    used = datasets[source.split]
    known = described[source.split] if source.kept.digest == used.digest else statistics.describe(source.kept)
    return {"split": source.split, "source": source.name, **_rows_read(source.split, [source]), **known}


def _sources(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    table = [
        ["source", "split", "rows", "kept", "truncated", "merges", "prompt", "chosen", "rejected", "chosen longer"]
    ]
    for source in sources:
        table.append([
            source["source"], source["split"], _count(source["rows"]), _count(source["kept"]),
            _part(source["truncated"], source["kept"]), _count(source["boundary_merges"]),
            *(_spread(source["length"][part]) for part in ("prompt", "chosen", "rejected")),
            _percent(source["chosen_longer"]),
        ])  # fmt: skip
    return _table(table)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _part(value: int, whole: int) -> str:
    return f"{value:,} ({value / whole:.1%})" if value else "0"


def _spread(value: Mapping[str, int]) -> str:
    return "{p50:,} / {p95:,} / {max:,}".format(**value)
