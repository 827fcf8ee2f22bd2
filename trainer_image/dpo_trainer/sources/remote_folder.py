"""A folder in an object store that is written to: its files have their SHA-256 beside them, and each is there when all of it is."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from dpo_trainer.sources import stores
from dpo_trainer.sources.access import Access
from dpo_trainer.sources.stores import Store, Stored

_DIGEST = "sha256"


@dataclass(frozen=True)
class RemoteFolder:
    """The folder. prefix: of its objects, with a slash at its end. Methods raise what store_answers.explain says."""

    store: Store
    url: str
    prefix: str

    def label(self, name: str) -> str:
        """A file's URL, for messages."""
        return f"{self.url}/{name}"

    def key(self, name: str) -> str:
        """A file's key in the bucket."""
        return f"{self.prefix}{name}"

    def there(self) -> dict[str, Stored]:
        """Objects of the folder, and of the folders in it, by their names in it."""
        found = self.store.below(self.prefix.rstrip("/"), self.url)
        return {one.key.removeprefix(self.prefix): one for one in found}

    def holds(self, there: dict[str, Stored], name: str, size: int, digest: str) -> bool:
        """Whether an object of `there` has a file's size, bytes, and digest, hex."""
        found = there.get(name)
        if found is None or found.size != size:
            return False
        return self.store.attributes(found.key, self.label(name)).get(_DIGEST) == digest

    def upload(
        self,
        name: str,
        file: BinaryIO,
        size: int,
        digest: str,
        differs: Callable[[], Exception],
        progress: Callable[[], None],
    ) -> None:
        """Upload a file if it has this digest, else raise `differs()`; then the folder has no such object. progress: called after each piece."""

        def pieces() -> Iterator[bytes]:
            hashed = hashlib.sha256()
            left = size
            while piece := file.read(min(left, stores.WRITTEN_AT_ONCE)):
                hashed.update(piece)
                left -= len(piece)
                # The last piece is held back until the digest is known to be right: without it the store has no object.
                if not left and hashed.hexdigest() != digest:
                    raise differs()
                yield piece
                progress()
            if left:
                raise differs()

        self.store.put(self.key(name), pieces(), size, {_DIGEST: digest}, self.label(name))

    def write(self, name: str, content: bytes, digest: str | None = None) -> None:
        """Write a small object. digest: noted beside it."""
        noted = {} if digest is None else {_DIGEST: digest}
        self.store.put(self.key(name), iter([content]), len(content), noted, self.label(name))

    def begin(self, name: str, note: dict[str, Any]) -> dict[str, Stored]:
        """Objects of the folder, as `there`. An empty one gets this note first; of several processes, the store lets one of them write it."""
        if not (there := self.there()):
            self.store.create(self.key(name), as_note(note), self.label(name))
            there = self.there()
        return there

    def note(self, found: Stored, name: str) -> dict[str, Any]:
        """A small object's content, a JSON object; empty for anything else."""
        try:
            content = json.loads(self.store.part(found, 0, found.size, self.label(name)))
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    def delete(self, name: str) -> None:
        """Delete an object, if it is there."""
        self.store.delete(self.key(name), self.label(name))


def open_folder(url: str, access: Access) -> RemoteFolder:
    """A folder by its URL; nothing is asked of the store yet. Raises TrainerError INVALID_CONFIGURATION."""
    url = url.rstrip("/")
    return RemoteFolder(stores.open_store(url, access, writes=True), url, f"{stores.split(url)[2]}/")


def as_note(content: dict[str, Any]) -> bytes:
    """JSON as RemoteFolder.note reads it."""
    return json.dumps(content, indent=1, sort_keys=True).encode()
