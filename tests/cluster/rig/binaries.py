"""The cluster's binaries, built from Go modules and kept in the cache.

Each module folder under `go/` pins what it builds by go.mod and go.sum. A build goes into a folder of its own, which is
renamed when it is complete, so that an interrupted build never looks like a finished one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.rig.gotoolchain import go
from tests.cluster.rig.layout import GO_MODULES, cache_root, discard_interrupted, locked
from tests.cluster.rig.shell import RigError, run_logged, step

ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"
VERSION_PACKAGE = "k8s.io/component-base/version"
# Stripped, without this machine's paths, and static: pause runs in an image that holds nothing else.
STRIPPED = "-s -w"
BUILD_ENVIRONMENT = {"CGO_ENABLED": "0"}
BUILD_FLAGS = ("-trimpath", "-buildvcs=false", "-mod=readonly")


@dataclass(frozen=True)
class Module:
    """One Go module folder and the binaries that come from it."""

    name: str
    version: str
    binaries: tuple[str, ...]
    # `tool` builds every tool that go.mod lists in one invocation: what they share is compiled once.
    package: str
    ldflags: str = STRIPPED
    tags: str = ""

    @property
    def source(self) -> Path:
        return GO_MODULES / self.name

    @property
    def key(self) -> str:
        """Changes with everything that the binaries are made from."""
        digest = hashlib.sha256(f"{self.ldflags}\0{self.tags}".encode())
        for file in sorted(self.source.iterdir()):
            if file.suffix in (".mod", ".sum", ".go"):
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()[:12]

    @property
    def folder(self) -> Path:
        return cache_root() / f"{self.name}-{self.version}-{self.key}"


def kubernetes(version: str) -> Module:
    major, minor, _ = version.removeprefix("v").split(".")
    stamps = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    return Module(
        name="kubernetes",
        version=version,
        binaries=(
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        ),
        package="tool",
        ldflags=" ".join([STRIPPED, *(f"-X {VERSION_PACKAGE}.{name}={value}" for name, value in stamps.items())]),
    )


# The small ones first: their progress shows early whether modules can be had at all.
MODULES = (
    Module("pause", "v3", ("pause",), "."),
    Module("etcd", "v3.6.7", ("etcd",), "."),
    kubernetes("v1.35.4"),
    Module("coredns", "v1.14.6", ("coredns",), "."),
    Module("helm", "v3.22.0", ("helm",), "tool"),
    # An object store that speaks S3, for the tests of sources and of pushed exports.
    Module("versitygw", "v1.8.0", ("versitygw",), "tool"),
    # A registry, for the tests of pushed exports.
    Module("distribution", "v3.1.1", ("registry",), "tool"),
    # Debian's Prometheus is built without the discovery of pods; this one has no other.
    Module(
        "prometheus",
        "v3.15.0",
        ("prometheus", "promtool"),
        "tool",
        tags="remove_all_sd,enable_kubernetes_sd",
    ),
)


def binary(name: str) -> Path:
    """The path of a binary, built first if need be; one in the KUBEBUILDER_ASSETS folder wins."""
    if assets := os.environ.get(ASSETS_VARIABLE):
        provided = Path(assets) / name
        if provided.is_file():
            return provided
    return ensure(module_of(name)) / name


def module_of(binary_name: str) -> Module:
    return next(module for module in MODULES if binary_name in module.binaries)


def ensure(module: Module) -> Path:
    """The folder with a module's binaries."""
    if not module.folder.is_dir():
        with locked(cache_root() / f"{module.name}.lock"):
            if not module.folder.is_dir():
                with step(f"building {module.name} {module.version} from its Go modules"):
                    build(module)
    return module.folder


def build(module: Module) -> None:
    discard_interrupted(module.name)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{module.name}-", dir=cache_root()))
    log = cache_root() / "logs" / f"build-{module.name}.log"
    flags = [*BUILD_FLAGS, "-tags", module.tags, "-ldflags", module.ldflags, "-o", f"{unfinished}/"]
    run_logged([str(go()), "build", *flags, module.package], log, cwd=module.source, env=BUILD_ENVIRONMENT)
    if missing := [name for name in module.binaries if not (unfinished / name).is_file()]:
        raise RigError(f"building {module.name} left no {', '.join(missing)}; see {log}")
    unfinished.chmod(0o755)
    unfinished.rename(module.folder)
    discard_old(module.name)


def discard_old(name: str) -> None:
    """Keep the newest build and the one before: another checkout may still be at that."""
    builds = sorted(cache_root().glob(f"{name}-v*-*"), key=lambda folder: folder.stat().st_mtime)
    for old in builds[:-2]:
        shutil.rmtree(old)


def ensure_all() -> None:
    """Build what is missing, one module after the other: each keeps all cores busy by itself."""
    for module in MODULES:
        ensure(module)
