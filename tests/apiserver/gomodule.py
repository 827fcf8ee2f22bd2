"""Files of Go modules: the CRDs that other projects publish, Kueue and kwok. Go keeps them outside the checkout, by version."""

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests import tied
from tests.cluster.rig.gotoolchain import go
from tests.cluster.rig.layout import cache_root, locked
from tests.cluster.rig.shell import step

KUEUE = ("sigs.k8s.io/kueue", "v0.17.0")
KWOK = ("sigs.k8s.io/kwok", "v0.8.0")
SCHEDULER_PLUGINS = ("sigs.k8s.io/scheduler-plugins", "v0.32.7")


@cache
def folder(module: str, version: str) -> Path:
    """Where the module's files are, downloaded once."""
    command = [str(go()), "mod", "download", "-json", f"{module}@{version}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, cwd="/")
    return Path(json.loads(done.stdout)["Dir"])


def documents(*files: Path) -> list[dict[str, Any]]:
    """The YAML documents of these files."""
    return [d for file in files for d in yaml.safe_load_all(file.read_text(encoding="utf-8")) if d]


def kueue_binary() -> Path:
    """Kueue's manager, built once from its module."""
    return _built("kueue", *KUEUE)


def kwok_binary() -> Path:
    """kwok, which plays nodes and pods, built once from its module."""
    return _built("kwok", *KWOK)


def _built(name: str, module: str, version: str) -> Path:
    """A command of a module, built where it is not in the cache; at a low priority, because it keeps all cores busy."""
    binary = cache_root() / f"{name}-{version}" / name
    with locked(cache_root() / f"{name}.lock"):
        if not binary.is_file():
            unfinished = binary.with_name(f".{name}")
            command = [
                "nice",
                "-n",
                "10",
                str(go()),
                "build",
                "-trimpath",
                "-buildvcs=false",
                "-mod=readonly",
                "-ldflags=-s -w",
            ]
            command += ["-o", str(unfinished), f"./cmd/{name}"]
            source = folder(module, version)
            binary.parent.mkdir(parents=True, exist_ok=True)
            with step(f"building {name} {version} from its Go module"):
                tied.run(command, cwd=source, timeout=1500, check=True)
            unfinished.rename(binary)
    return binary
