"""The pool of volumes that claims of the storage class `shared` are bound to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.cluster.rig.control_plane import ControlPlane
from tests.cluster.rig.manifests import STORAGE_CLASS, volume

# Nothing is reserved: a claim of any size that a job may ask for is bound.
SIZE = "1Ti"


def refill(plane: ControlPlane, count: int, *, size: str = SIZE) -> None:
    """Make the pool hold this many volumes that can be claimed; released ones are deleted with their content."""
    listed = json.loads(plane.kubectl("get", "persistentvolumes", "-o", "json"))["items"]
    own = [each for each in listed if each["spec"].get("storageClassName") == STORAGE_CLASS]
    available = 0
    for each in own:
        phase = each["status"].get("phase")
        if phase in ("Released", "Failed"):
            plane.kubectl("delete", "persistentvolume", each["metadata"]["name"])
            shutil.rmtree(each["spec"]["hostPath"]["path"], ignore_errors=True)
        elif phase != "Bound" and each["spec"]["capacity"]["storage"] == size:
            available += 1
    if missing := count - available:
        first = 1 + max([0, *(int(each["metadata"]["name"].rpartition("-")[2]) for each in own)])
        names = [f"{STORAGE_CLASS}-{number:03}" for number in range(first, first + missing)]
        plane.apply(*(volume(name, make_folder(plane.layout.volumes / name), size) for name in names))


def make_folder(path: Path) -> Path:
    """hostPath volumes take no notice of a pod's fsGroup, so anyone may write into the folder."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o777)
    return path
