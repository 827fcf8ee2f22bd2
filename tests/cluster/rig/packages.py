"""Debian packages that the rig calls on, installed when their commands are missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.cluster.rig.configs import CNI_PLUGINS
from tests.cluster.rig.layout import cache_root, locked
from tests.cluster.rig.shell import RigError, run_logged, step

# What a package is asked for, as a command or a file, and the package.
NEEDED = {
    "containerd": "containerd",
    "runc": "runc",
    str(CNI_PLUGINS / "bridge"): "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "sysctl": "procps",
    "openssl": "openssl",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}
# A package's service is not started when systemd is not there to start it, or when the runlevel says maintenance.
ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}


def missing() -> list[str]:
    """Packages whose command or file is not there."""
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    lacking = {
        package
        for wanted, package in NEEDED.items()
        if not (Path(wanted).exists() if wanted.startswith("/") else shutil.which(wanted, path=search))
    }
    return sorted(lacking)


def ensure() -> None:
    """Install what is missing; needs root and Debian."""
    wanted = missing()
    if not wanted:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise RigError(f"missing: {', '.join(wanted)}; installing them needs root and apt-get")
    log = cache_root() / "logs" / "packages.log"
    with locked(cache_root() / "packages.lock"), step(f"installing {', '.join(wanted)}"):
        run_logged(["apt-get", "update"], log, env=ENVIRONMENT)
        run_logged(["apt-get", "install", "--yes", "--no-install-recommends", *wanted], log, env=ENVIRONMENT)
    if still := missing():
        raise RigError(f"installed, but not to be found: {', '.join(still)}; see {log}")
