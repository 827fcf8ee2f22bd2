"""Where the prepare phase reads from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dpo_trainer.sources.access import Access
from dpo_trainer.sources.cache import Cache
from dpo_trainer.sources.kinds import Elsewhere, HubSource, Source

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Inputs:
    """Access to models and datasets, and how progress is reported.

    claims: folder in which claims are mounted by name. token: of the hub; None means anonymous, or the login of this machine.
    access: keys and settings of stores and hubs. cache: files of the hub that jobs share; None without one.
    progress: called with a description and the finished share of the phase, 0 to 1.
    """

    claims: Path
    token: str | None = None
    cache: Cache | None = None
    progress: Progress = lambda *_: None
    access: Access = field(default_factory=Access)

    def elsewhere(self, folder: Path | None, progress: Callable[[str], None]) -> Elsewhere:
        """How a source's files that are elsewhere are reached. folder: for those that are opened. progress: called with what is done."""
        return Elsewhere(self.access, self.token, folder, progress)


def kind(source: Source) -> str:
    """Kind of a source, for prepared.json."""
    return "hub" if isinstance(source, HubSource) else source.kind
