"""Building images with buildah, without a container daemon and without a registry.

Its storage is the rig's own folder in the cache. Every call gets namespaces of its own for mounts and processes, so that
none outlives a build, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.rig import packages
from tests.cluster.rig.layout import cache_root
from tests.cluster.rig.shell import RigError, run, run_logged

# What a command mounts and starts ends with it, even when it is killed.
ALONE = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")
CERTIFICATES = Path("/etc/ssl/certs")
USED_CACHE = re.compile(r"^--> Using cache ([0-9a-f]{64})", re.MULTILINE)
INSTALLER_PREFIXES = ("PIP_", "UV_")


def storage() -> Path:
    """Image layers, unpacked: the nodes' containers run on these very folders."""
    return cache_root() / "images" / "storage"


def buildah(*words: str | Path) -> list[str | Path]:
    """A buildah command line."""
    packages.ensure()
    # metacopy would leave files in a layer that are understood only together with the layers below.
    plain = ("--storage-driver", "overlay", "--storage-opt", "overlay.mountopt=nodev")
    own = ("--root", storage(), "--runroot", storage().with_name("run"))
    return [*ALONE, "buildah", *own, *plain, *words]


def call(*words: str | Path) -> str:
    return run(buildah(*words)).strip()


@dataclass(frozen=True)
class Built:
    """An image, and the images that its build made or used on the way: the cache of the next build."""

    image_id: str
    steps: tuple[str, ...]


def build(dockerfile: Path, *, context: Path, arguments: Mapping[str, str], log: Path) -> Built:
    """Build a Dockerfile, instruction by instruction, each of which is cached."""
    # What an interrupted build left would be taken for layers in use.
    call("rm", "--all")
    before = image_ids()
    log.unlink(missing_ok=True)
    answer = log.with_suffix(".id")
    words: list[str | Path] = ["bud", "--isolation", "chroot", "--layers", "--pull-never", "--format", "oci"]
    words += ["--file", dockerfile, "--iidfile", answer]
    for name, value in arguments.items():
        words += ["--build-arg", f"{name}={value}"]
    for source, target in installer_mounts(log.parent / "installer").items():
        words += ["--volume", f"{source}:{target}:ro"]
    run_logged(buildah(*words, context), log)
    steps = (image_ids() - before) | set(USED_CACHE.findall(log.read_text()))
    return Built(answer.read_text().strip().removeprefix("sha256:"), tuple(sorted(steps)))


def installer_mounts(folder: Path) -> dict[Path, Path]:
    """What pip and uv need of this machine to reach their index: certificates and settings.

    Mounted, not set as environment, so that nothing of this machine stays in an image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in os.environ.items() if name.startswith(INSTALLER_PREFIXES)}
    pip, uv = folder / "pip.conf", folder / "uv.toml"
    pip.write_text(pip_configuration(settings))
    uv.write_text(uv_configuration(settings))
    mounts = {pip: Path("/etc/pip.conf"), uv: Path("/etc/uv/uv.toml")}
    for path in (CERTIFICATES, *local_folders(settings)):
        if path.is_dir():
            mounts[path] = path
    return mounts


def pip_configuration(settings: Mapping[str, str]) -> str:
    """PIP_* variables as pip's configuration file."""
    lines = [
        f"{name.removeprefix('PIP_').lower().replace('_', '-')} = {value}"
        for name, value in sorted(settings.items())
        if name.startswith("PIP_") and name not in ("PIP_CONFIG_FILE", "PIP_REQUIRE_VIRTUALENV")
    ]
    return "\n".join(["[global]", *lines]) + "\n"


def uv_configuration(settings: Mapping[str, str]) -> str:
    """The settings that say where packages come from, as uv's configuration file; pip's count where uv has none."""
    lines = ["native-tls = true"]
    if index := settings.get("UV_INDEX_URL") or settings.get("UV_DEFAULT_INDEX") or settings.get("PIP_INDEX_URL"):
        lines.append(f"index-url = {json.dumps(index)}")
    if links := settings.get("UV_FIND_LINKS") or settings.get("PIP_FIND_LINKS"):
        lines.append(f"find-links = {json.dumps(links.split())}")
    if seconds := settings.get("UV_HTTP_TIMEOUT") or settings.get("PIP_DEFAULT_TIMEOUT"):
        lines.append(f"# a time-out of {seconds} s can be given to uv by environment only")
    return "\n".join(lines) + "\n"


def local_folders(settings: Mapping[str, str]) -> list[Path]:
    """Folders of this machine that the settings name."""
    words = [word for value in settings.values() for word in value.split() if word.startswith("/")]
    return [Path(word) for word in dict.fromkeys(words) if Path(word).is_dir()]


def exists(image_id: str) -> bool:
    return any(image["id"] == image_id for image in stored("images"))


def layers(image_id: str) -> list[Path]:
    """The folders of an image's unpacked layers, lowest first."""
    parents = {layer["id"]: layer.get("parent", "") for layer in stored("layers")}
    top = next(image["layer"] for image in stored("images") if image["id"] == image_id)
    found: list[Path] = []
    while top:
        found.insert(0, storage() / "overlay" / top / "diff")
        top = parents[top]
    return found


def stored(kind: str) -> list[dict[str, Any]]:
    """The storage's own list of "images" or "layers"."""
    try:
        listed: list[dict[str, Any]] = json.loads((storage() / f"overlay-{kind}" / f"{kind}.json").read_text())
    except FileNotFoundError:
        return []
    return listed


def configuration(image_id: str) -> dict[str, Any]:
    """How the image says that it is run: environment, entry point, user and so on."""
    shown: dict[str, Any] = json.loads(call("inspect", "--type", "image", image_id))["OCIv1"]["config"]
    return shown


def image_ids() -> set[str]:
    return {image["id"] for image in stored("images")}


def discard(ids: Iterable[str]) -> None:
    """Remove images; what others are based on stays, and so do layers in use."""
    left = set(ids) & image_ids()
    removable = True
    while left and removable:
        # An image can go only after those that are based on it, so this takes a few rounds.
        removable = False
        for image_id in sorted(left):
            with contextlib.suppress(RigError):
                call("rmi", image_id)
                removable = True
        left &= image_ids()
