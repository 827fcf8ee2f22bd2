"""The Python base image of the project's Dockerfiles, made from Debian packages: this machine reaches no registry."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from tests.cluster.rig import builder, packages
from tests.cluster.rig.layout import cache_root
from tests.cluster.rig.shell import run_logged, step

SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "ca-certificates", "libgomp1")
PREFIX = "base-"
# What the image of the same name from the registry has, and Debian's packages have not.
FINISH = """\
ln -s /usr/bin/python3 /usr/local/bin/python
ln -s /usr/bin/python3 /usr/local/bin/python3
rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
rm -rf /var/cache/apt/* /var/lib/apt/lists/* /usr/share/doc/* /usr/share/man/* /usr/share/locale/* /var/log/*
"""


def reference() -> str:
    """The image's name, which changes with what it is made from."""
    key = hashlib.sha256("\n".join([SUITE, *PACKAGES, FINISH]).encode()).hexdigest()[:12]
    return f"localhost/python-{SUITE}:{key}"


def ensure() -> str:
    """The id of the image, made if need be."""
    name = reference()
    for image in builder.stored("images"):
        if name in image.get("names", ()):
            return str(image["id"])
    with step(f"making a Python base image from Debian {SUITE} packages"):
        return make(name)


def make(name: str) -> str:
    packages.ensure()
    log = cache_root() / "logs" / "base-image.log"
    for leftover in cache_root().glob(f"{PREFIX}*"):
        shutil.rmtree(leftover)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=cache_root()))
    try:
        include = f"--include={','.join(PACKAGES)}"
        run_logged([*builder.ALONE, "debootstrap", "--variant=minbase", include, SUITE, folder], log)
        run_logged(["chroot", folder, "sh", "-e", "-c", FINISH], log)
        folder.chmod(0o755)
        container = builder.call("from", "scratch")
        try:
            builder.call("add", "--quiet", container, folder, "/")
            builder.call("config", "--cmd", "python3", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", container)
            return builder.call("commit", "--quiet", "--format", "oci", container, name)
        finally:
            builder.call("rm", container)
    finally:
        shutil.rmtree(folder)
