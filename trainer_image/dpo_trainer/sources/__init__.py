"""Where bytes come from: hub, files, claims, object stores, the shared cache."""

from dpo_trainer.sources.kinds import Elsewhere, FileSource, HubSource, Source
from dpo_trainer.sources.resolve import resolve

__all__ = ["Elsewhere", "FileSource", "HubSource", "Source", "resolve"]
