"""What an image is made from, found in its Dockerfile, so that nothing unchanged is built again. Pure but for reading."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

IGNORED = ("__pycache__",)


def copied(dockerfile: str) -> list[str]:
    """The paths of the context that a Dockerfile copies, in the order of its lines."""
    found: list[str] = []
    for line in dockerfile.replace("\\\n", " ").splitlines():
        words = line.split()
        if not words or words[0].upper() not in ("COPY", "ADD"):
            continue
        if any(word.startswith("--from") for word in words):
            continue
        found += [word for word in words[1:-1] if not word.startswith("--")]
    return list(dict.fromkeys(found))


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """All files in these files and folders, in a fixed order, without what Python leaves behind."""
    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file() and not any(part in IGNORED for part in file.parts):
                    yield file
        else:
            yield path


def digest(context: Path, dockerfile: Path, *more: str) -> str:
    """Changes with the Dockerfile, any file that it copies, their modes, or one of the additional words."""
    text = dockerfile.read_text()
    total = hashlib.sha256("\0".join([text, *more]).encode())
    for file in files(context / path for path in copied(text)):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(context)}\0{file.stat().st_mode & 0o111}\0{content}\n".encode())
    return total.hexdigest()[:16]
