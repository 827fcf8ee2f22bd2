"""Files that are elsewhere: in an object store, or in a dataset of the hub. They are listed at once, and downloaded when they are needed."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from dpo_trainer.runtime.errors import TrainerError, input_not_found
from dpo_trainer.runtime.files import remove
from dpo_trainer.sources import downloads, hub, stores
from dpo_trainer.sources.kinds import Elsewhere, FileSource, HubSource
from dpo_trainer.sources.stores import Store, Stored


class _Fetch(Protocol):
    def __call__(self, name: str, target: Path, progress: Callable[[float], None]) -> None: ...


@dataclass(frozen=True)
class _Files:
    """Files that fetch downloads. label: of the source. folder: where those go that are read from here.

    versions: what changes with a file's content, by its name; None where nothing does. fetched: names of files that this process downloaded.
    """

    label: str
    fetch: _Fetch
    elsewhere: Elsewhere
    versions: Mapping[str, str | None]
    fetched: set[str] = field(default_factory=set)

    def here(self, name: str) -> Path:
        """The file, downloaded unless this version of it was before, by this process or one that was interrupted."""
        # Whatever is in a name, this is one inside the folder; and two sources may have files of one name.
        key, version = _digest(f"{self.label}\0{name}"), self.versions[name]
        assert self.elsewhere.folder is not None
        target = self.elsewhere.folder / f"{key}-{_digest(version or '')}"
        text = f"downloading {self.label}" if self.label.endswith(name) else f"downloading {name} of {self.label}"
        # Without a version, a file that another process left may be of another object.
        if not target.is_file() or (version is None and name not in self.fetched):
            for other in self.elsewhere.folder.glob(f"*{key}*"):
                if target.name not in other.name:
                    remove(other)  # another version would only take room
            self.fetch(name, target, lambda share: self.elsewhere.progress(f"{text} ({share:.0%})"))
            self.fetched.add(name)
        return target


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def in_store(url: str, elsewhere: Elsewhere) -> FileSource:
    """An object, or those below a prefix. Raises TrainerError."""
    scheme, _, key = stores.split(url)
    store = stores.open_store(url, elsewhere.access)
    found, is_file = _found(store, key, url)
    if is_file:
        named = {PurePosixPath(key).name: found[0]}
    else:
        start = len(key) + 1 if key else 0
        # An object of no bytes whose name ends in a slash stands for a folder, and is listed as the folder.
        named = {one.key[start:]: one for one in found if len(one.key) > start}

    def fetch(name: str, target: Path, progress: Callable[[float], None]) -> None:
        downloads.download(store, named[name], target, url if is_file else f"{url.rstrip('/')}/{name}", progress)

    sizes = {name: one.size for name, one in named.items()}
    versions = {name: one.etag and f"{one.size}:{one.etag}" for name, one in named.items()}
    return FileSource(url, scheme, key, is_file, sizes, remote=_Files(url, fetch, elsewhere, versions))


def _found(store: Store, key: str, label: str) -> tuple[list[Stored], bool]:
    """The objects of a key, and whether they are that one object."""
    refused: TrainerError | None = None
    if key:
        try:
            if (one := store.head(key, label)) is not None:
                return [one], True
        except TrainerError as error:
            refused = (
                error  # without a reason, because this request has no answer but its status; the next one may tell
            )
    below = store.below(key, label)
    if not below:
        raise refused or input_not_found(
            f"{label}: no object has this name or begins with it and a slash; check its name"
        )
    return below, False


def in_dataset(label: str, repository: HubSource, path: str, elsewhere: Elsewhere) -> FileSource:
    """A file of a hub's dataset, or those in a folder of it, at one commit. Raises TrainerError."""
    snapshot = hub.dataset_snapshot(repository, elsewhere.token)
    is_file = path in snapshot.sizes
    inside = f"{path}/"
    named = {PurePosixPath(path).name: path} if is_file else _below(snapshot.sizes, inside)
    if not named:
        raise input_not_found(f"{label}: the dataset has no file or folder {path} at {snapshot.commit}")

    def fetch(name: str, target: Path, progress: Callable[[float], None]) -> None:
        # Interrupted downloads are kept and resumed by the hub's client, in a folder of the commit.
        folder = target.with_name(f".{target.name}.{snapshot.commit[:16]}")
        hub.download(snapshot, [named[name]], folder, elsewhere.token)
        hub.require_right(snapshot, named[name], folder)
        (folder / named[name]).replace(target)
        remove(folder)
        progress(1.0)

    sizes = {name: snapshot.sizes[full] for name, full in named.items()}
    versions = dict.fromkeys(named, snapshot.commit)
    return FileSource(label, "hub", path, is_file, sizes, remote=_Files(label, fetch, elsewhere, versions))


def _below(sizes: Mapping[str, int], inside: str) -> dict[str, str]:
    return {name.removeprefix(inside): name for name in sizes if name.startswith(inside)}
