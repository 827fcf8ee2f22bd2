"""Debian packages that the rig calls on, installed when their commands are missing.

Nobody has to remember it: whatever uses the commands asks for them first. These places are the boot of a cluster, the start
of a control plane, and every call of the image builder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.rig.configs import CNI_PLUGINS
from tests.cluster.rig.layout import cache_root, locked
from tests.cluster.rig.shell import RigError, run_logged, search_path, step

# What a package is asked for, as a command or a file, and the package.
CONTROL_PLANE = {"openssl": "openssl"}
CLUSTER = CONTROL_PLANE | {
    "containerd": "containerd",
    "runc": "runc",
    str(CNI_PLUGINS / "bridge"): "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "mount": "mount",
    "sysctl": "procps",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}
COMPILER = {"cc": "gcc", "/usr/include/stdio.h": "libc6-dev"}
# A package's service is not started when systemd is not there to start it, or when the runlevel says maintenance.
ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
# Another apt-get may be at work.
APT_GET = ("apt-get", "--option", "DPkg::Lock::Timeout=300")


def missing(needed: Mapping[str, str] = CLUSTER) -> list[str]:
    """Packages whose command or file is not there."""
    lacking = {
        package
        for wanted, package in needed.items()
        if not (Path(wanted).exists() if wanted.startswith("/") else shutil.which(wanted, path=search_path()))
    }
    return sorted(lacking)


def ensure(needed: Mapping[str, str] = CLUSTER) -> None:
    """Install what is missing; needs root and Debian."""
    if not missing(needed):
        return
    log = cache_root() / "logs" / "packages.log"
    with locked(cache_root() / "packages.lock"):
        wanted = missing(needed)
        if not wanted:
            return
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise RigError(f"missing: {', '.join(wanted)}; installing them needs root and apt-get")
        with step(f"installing {', '.join(wanted)}"):
            # An installation that is killed half way leaves dpkg's records broken, so it may outlive this process.
            run_logged([*APT_GET, "update"], log, env=ENVIRONMENT, tied=False)
            words = [*APT_GET, "install", "--yes", "--no-install-recommends", *wanted]
            run_logged(words, log, env=ENVIRONMENT, tied=False)
    if still := missing(needed):
        raise RigError(f"installed, but not to be found: {', '.join(still)}; see {log}")
