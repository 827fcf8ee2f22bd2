"""Where bytes come from: hub, files, claims, object stores, the shared cache."""

from dpo_trainer.sources.resolve import FileSource, HubSource, Source, resolve

__all__ = ["FileSource", "HubSource", "Source", "resolve"]
