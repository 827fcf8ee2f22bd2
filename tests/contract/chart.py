"""The chart as Helm renders it."""

import subprocess
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from tests.cluster.rig.binaries import MODULES, binary
from tests.conftest import REPOSITORY

CHART = REPOSITORY / "charts" / "dpo-operator"
NAMESPACE = "dpo-system"
KUBERNETES = next(module.version for module in MODULES if module.name == "kubernetes")

Json = dict[str, Any]


class HelmError(Exception):
    """Helm refused; the message is its own."""


@dataclass(frozen=True)
class Rendered:
    """The objects of a release."""

    objects: tuple[Json, ...]

    def all(self, kind: str) -> list[Json]:
        return [o for o in self.objects if o["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Json:
        found = [o for o in self.all(kind) if name in (None, o["metadata"]["name"])]
        assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
        return found[0]

    @property
    def container(self) -> Json:
        """The operator's container."""
        (container,) = self.one("Deployment")["spec"]["template"]["spec"]["containers"]
        return container

    @property
    def environment(self) -> dict[str, str]:
        """Without what only a pod knows."""
        return {variable["name"]: variable["value"] for variable in self.container["env"] if "value" in variable}


def helm(*words: str) -> str:
    """Run Helm without a cluster. Raises HelmError."""
    result = subprocess.run([str(binary("helm")), *words], capture_output=True, text=True, timeout=60, check=False)
    if result.returncode:
        raise HelmError(result.stderr)
    return result.stdout


@cache
def render(*settings: str, release: str = "dpo-operator") -> Rendered:
    """`helm template` with --set arguments. Rendered once; nobody may change what is returned."""
    flags = [word for setting in settings for word in ("--set", setting)]
    text = helm("template", release, str(CHART), "--namespace", NAMESPACE, "--kube-version", KUBERNETES, *flags)
    return Rendered(tuple(o for o in yaml.safe_load_all(text) if o))
