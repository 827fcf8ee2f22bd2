"""The first rows of a job's local files: which format they have, and what would be left out or refused. Nothing is tokenized."""

from collections.abc import Iterator
from pathlib import Path

from dpo_operator.api.data import Dataset
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.data import mixture
from dpo_trainer.data.rows import FileRows
from dpo_trainer.data.splits import Glance, glance
from dpo_trainer.sources import resolve
from dpo_trainer.sources.kinds import FileSource


def lines(spec: DPOJobSpec, claims: Path) -> Iterator[str]:
    """A line for each source of data. claims: folder in which claims are mounted by name.

    Raises TrainerError for rows that prepare would refuse.
    """
    training = mixture.sources(spec.data)
    for name, dataset in (training | ({} if spec.data.eval is None else {"eval": spec.data.eval})).items():
        yield f"{name}: {_line(name, dataset, spec, claims)}"


def _line(name: str, dataset: Dataset, spec: DPOJobSpec, claims: Path) -> str:
    elsewhere = "://" in dataset.source and not dataset.source.startswith("pvc://")
    source = None if elsewhere else resolve(dataset.source, dataset.revision, claims=claims)
    if not isinstance(source, FileSource):
        return f"{dataset.source} is not on this machine and was not looked at; dpo preview reads it"
    found = glance(name, FileRows(source, split=dataset.split), dataset, spec.data, spec.method.name)
    return f"{dataset.source}: {found.format}; {_counts(found)}"


def _counts(found: Glance) -> str:
    text = f"{found.pairs} pairs in the first {found.rows} rows"
    if found.dropped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in found.dropped.items())
        text += f"; left out: {reasons}. The first: {found.first}"
    return text
