"""What a power cut may leave: the file operations of real code are recorded, and replayed with what was not synced lost.

The model is stricter than any one file system. A file's content is safe after fsync of the file; until then it is what was synced before, or all,
half or zeros of what was written. A name in a folder, made, renamed or removed, is safe after fsync of that folder; until then each operation
may have reached the disk or not, whatever came before or after it (as in Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014).
"""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

# Up to this many operations, every choice of those that reached the disk is tried; of more, one lost, one kept, and each beginning.
ALL_CHOICES = 4

Content = Literal["lost", "whole", "half", "zeros"]


@dataclass(eq=False)
class Node:
    """A file or a folder. entries: of a folder, else None."""

    entries: "dict[str, Node] | None" = None


@dataclass(frozen=True)
class Operation:
    """One operation. old, new: names in the folder before and after; None for a name that is made or removed.

    A sync has a node alone. contents: of every file at this moment, before the operation.
    """

    kind: Literal["name", "sync", "mark"]
    node: Node
    folder: Node | None = None
    old: str | None = None
    new: str | None = None
    mark: Any = None
    contents: dict[Node, bytes] = field(default_factory=dict)


class Recorder:
    """Records what happens below a folder, which must be empty. Use `recording` to make one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = Node({})
        self.operations: list[Operation] = []
        self._last: dict[Node, bytes] = {}

    def mark(self, value: Any) -> None:
        """Note a moment, such as that a commit returned."""
        self.look()
        self.operations.append(Operation("mark", self.tree, mark=value, contents=dict(self._last)))

    def check(self) -> None:
        """Assert that the recorded operations explain what is on the disk now."""
        on_disk = {str(path.relative_to(self.root)) for path in self.root.rglob("*")}
        assert {name for name, _ in _walk(self.tree)} == on_disk, "an operation was not recorded"

    def name(self, folder: Path, old: str | None, new: str | None, *, is_folder: bool = False) -> None:
        """Record that a name was made (old is None), renamed, or removed (new is None)."""
        parent = self._node(folder)
        if parent is None or parent.entries is None:
            return
        node = Node({} if is_folder else None) if old is None else parent.entries[old]
        self.operations.append(Operation("name", node, parent, old, new, contents=dict(self._last)))
        _apply(parent, old, new, node)

    def sync(self, path: Path) -> None:
        """Record that a file's content, or a folder's names, were synced."""
        if (node := self._node(path)) is not None:
            self.operations.append(Operation("sync", node, contents=dict(self._last)))

    def has(self, path: Path) -> bool:
        """Whether it is below the root, and there as far as was recorded."""
        return self._node(path) is not None

    def _node(self, path: Path) -> Node | None:
        if not path.is_relative_to(self.root):
            return None
        node: Node | None = self.tree
        for part in path.relative_to(self.root).parts:
            node = node.entries.get(part) if node is not None and node.entries is not None else None
        return node

    def look(self) -> None:
        """Note the content of each file; called before each operation."""
        for name, node in _walk(self.tree):
            path = self.root / name
            if node.entries is None and path.is_file():
                self._last[node] = path.read_bytes()


def recording(root: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Record what this process does below a folder, until monkeypatch is undone."""
    recorder = Recorder(root)

    def at(path: Any, dir_fd: int | None = None) -> Path:
        if isinstance(path, int):
            return Path(os.readlink(f"/proc/self/fd/{path}"))
        base = Path(os.readlink(f"/proc/self/fd/{dir_fd}")) if dir_fd is not None else Path.cwd()
        return base / os.fsdecode(path)

    def wrapped(name: str, before: Callable[..., Callable[[], None] | None]) -> None:
        real = getattr(os, name)

        def call(*args: Any, **named: Any) -> Any:
            recorder.look()
            then = before(*args, **named)
            result = real(*args, **named)
            if then is not None:
                then()
            return result

        monkeypatch.setattr(os, name, call)

    def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> Callable[[], None] | None:
        place = at(path, dir_fd)
        if not flags & os.O_CREAT or recorder.has(place):
            return None
        return lambda: recorder.name(place.parent, None, place.name)

    def made(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> Callable[[], None]:
        place = at(path, dir_fd)
        return lambda: recorder.name(place.parent, None, place.name, is_folder=True)

    def removed(path: Any, *, dir_fd: int | None = None) -> Callable[[], None]:
        place = at(path, dir_fd)
        return lambda: recorder.name(place.parent, place.name, None) if recorder.has(place) else None

    def renamed(source: Any, target: Any, **_: Any) -> Callable[[], None]:
        old, new = at(source), at(target)
        if recorder.has(old):
            assert old.parent == new.parent, "the model has no renames between folders"
        return lambda: recorder.name(old.parent, old.name, new.name) if recorder.has(old) else None

    def synced(descriptor: int) -> Callable[[], None]:
        place = at(descriptor)
        return lambda: recorder.sync(place)

    for name in ("fsync", "fdatasync"):
        wrapped(name, synced)
    for name in ("rename", "replace"):
        wrapped(name, renamed)
    for name in ("unlink", "remove", "rmdir"):
        wrapped(name, removed)
    wrapped("mkdir", made)
    wrapped("open", opened)
    return recorder


@dataclass(frozen=True)
class Cut:
    """A disk after a power cut. files: content by name; None for a folder. marks: what had been marked before."""

    files: tuple[tuple[str, bytes | None], ...]
    marks: tuple[Any, ...]

    def write(self, root: Path) -> None:
        """Make it in an empty folder."""
        for name, content in self.files:
            if content is None:
                (root / name).mkdir()
            else:
                (root / name).write_bytes(content)


def cuts(recorder: Recorder) -> Iterator[Cut]:
    """Every disk that the model allows after a cut between two of the operations, each once."""
    seen = set()
    for moment in range(len(recorder.operations)):
        for cut in _cuts_at(recorder, moment):
            if cut not in seen:
                seen.add(cut)
                yield cut


def _cuts_at(recorder: Recorder, moment: int) -> Iterator[Cut]:
    past, now = recorder.operations[:moment], recorder.operations[moment].contents
    safe: dict[Node, bytes] = {}
    pending: list[int] = []
    for number, operation in enumerate(past):
        if operation.kind == "name":
            pending.append(number)
        elif operation.kind == "sync" and operation.node.entries is None:
            safe[operation.node] = operation.contents[operation.node]
        elif operation.kind == "sync":
            pending = [other for other in pending if past[other].folder is not operation.node]
    marks = tuple(operation.mark for operation in past if operation.kind == "mark")
    for lost in _choices(pending):
        kept = [op for number, op in enumerate(past) if op.kind == "name" and number not in lost]
        entries = _replayed(recorder.tree, kept)
        variants: tuple[Content, ...] = ("lost", "whole", "half", "zeros")
        for variant in variants:
            yield Cut(tuple(sorted(_files(entries, safe, now, variant))), marks)


def _choices(pending: list[int]) -> Iterator[frozenset[int]]:
    """Which of the operations are lost."""
    if len(pending) <= ALL_CHOICES:
        for size in range(len(pending) + 1):
            yield from map(frozenset, itertools.combinations(pending, size))
        return
    everything = frozenset(pending)
    for number, one in enumerate(pending):
        yield frozenset([one])
        yield everything - {one}
        yield frozenset(pending[number:])
    yield frozenset()


def _replayed(root: Node, operations: list[Operation]) -> dict[str, Node]:
    """Names and nodes after some operations; one whose own beginning is missing has no effect."""
    folders: dict[Node, dict[str, Node]] = {}
    for operation in operations:
        assert operation.folder is not None
        names = folders.setdefault(operation.folder, {})
        if operation.old is not None and names.get(operation.old) is not operation.node:
            continue
        if operation.new is None and folders.get(operation.node):
            continue  # a folder that is not empty stays
        if operation.new is not None and folders.get(names.get(operation.new, Node())):
            continue  # nor is it replaced
        if operation.old is not None:
            del names[operation.old]
        if operation.new is not None:
            names[operation.new] = operation.node
    found: dict[str, Node] = {}

    def collect(folder: Node, prefix: str) -> None:
        for name, node in folders.get(folder, {}).items():
            found[prefix + name] = node
            collect(node, f"{prefix}{name}/")

    collect(root, "")
    return found


def _files(
    entries: dict[str, Node], safe: dict[Node, bytes], now: dict[Node, bytes], variant: Content
) -> Iterator[tuple[str, bytes | None]]:
    for name, node in entries.items():
        if node.entries is not None:
            yield name, None
            continue
        synced = safe.get(node, b"")
        current = now.get(node, synced)
        if current == synced or variant == "lost":
            yield name, synced
        elif variant == "whole":
            yield name, current
        else:
            yield name, current[: len(current) // 2] if variant == "half" else bytes(len(current))


def _apply(folder: Node, old: str | None, new: str | None, node: Node) -> None:
    assert folder.entries is not None
    if old is not None:
        del folder.entries[old]
    if new is not None:
        folder.entries[new] = node


def _walk(folder: Node, prefix: str = "") -> Iterator[tuple[str, Node]]:
    for name, node in list((folder.entries or {}).items()):
        yield prefix + name, node
        yield from _walk(node, f"{prefix}{name}/")
