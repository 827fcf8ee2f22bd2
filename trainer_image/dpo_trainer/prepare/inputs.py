"""Where the prepare phase reads from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dpo_trainer.sources.cache import Cache
from dpo_trainer.sources.resolve import HubSource, Source

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Inputs:
    """Access to models and datasets, and how progress is reported.

    claims: folder in which claims are mounted by name. token: of the hub; None means anonymous, or the login of this machine.
    cache: files of the hub that jobs share; None without one.
    progress: called with a description and the finished share of the phase, 0 to 1.
    """

    claims: Path
    token: str | None = None
    cache: Cache | None = None
    progress: Progress = lambda *_: None


def kind(source: Source) -> str:
    """Kind of a source, for prepared.json."""
    return "hub" if isinstance(source, HubSource) else source.kind
