"""The images that a cluster runs, and the way they get into a node's containerd: without being copied.

buildah keeps every layer unpacked in a folder. A node's containerd is given an image whose layers are tiny archives,
each holding one file that names such a folder; once containerd has unpacked them, what it unpacked is replaced by links
to the folders. Containers then mount the folders as lower layers of their overlays. A trainer image of several GB reaches
a node in a fraction of a second, and exists once on the machine, however many nodes there are.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.cluster.rig import base_image, builder, inputs
from tests.cluster.rig.binaries import ensure as ensure_module
from tests.cluster.rig.binaries import module_of
from tests.cluster.rig.configs import PAUSE_IMAGE
from tests.cluster.rig.layout import CHECKOUT, cache_root, locked
from tests.cluster.rig.node import Node
from tests.cluster.rig.remains import any_cluster
from tests.cluster.rig.shell import step

MARKER = ".layer"
TEST_IMAGE = "localhost/python:3"
# How Kubernetes reads an image's name that has no host in it.
DEFAULT_HOST = "docker.io/library/"


@dataclass(frozen=True)
class Image:
    """An image in the builder's storage."""

    name: str
    image_id: str
    layers: tuple[Path, ...]
    config: dict[str, Any]

    @property
    def full_name(self) -> str:
        return self.name if "/" in self.name else DEFAULT_HOST + self.name

    @property
    def present(self) -> bool:
        """Whether its layers are still there: a cache may be emptied at any time."""
        return all(layer.is_dir() for layer in self.layers)


@dataclass(frozen=True)
class Recipe:
    """One of the project's Dockerfiles; its context is the checkout."""

    name: str
    dockerfile: str
    arguments: tuple[tuple[str, str], ...] = ()

    @property
    def file(self) -> Path:
        return CHECKOUT / self.dockerfile

    @property
    def slug(self) -> str:
        return self.name.partition(":")[0]


RECIPES = (
    Recipe("dpo-operator:dev", "Dockerfile"),
    # Without a compiler, which is for GPUs alone: Debian's packages may be out of reach while an image is built here.
    Recipe("dpo-trainer:dev", "trainer_image/Dockerfile", (("DEBIAN_PACKAGES", ""),)),
)


def folder() -> Path:
    return cache_root() / "images"


def ensure(recipes: Sequence[Recipe] = RECIPES) -> list[Image]:
    """All images of a cluster, built if need be: the project's, the pause image, a plain Python to test with."""
    return [ensure_pause(), ensure_test(), *(ensure_built(recipe) for recipe in recipes if recipe.file.exists())]


def ensure_pause() -> Image:
    """The image of every pod's sandbox: one static program in a folder."""
    module = module_of("pause")
    binaries = ensure_module(module)
    return Image(PAUSE_IMAGE, module.key, (binaries,), {"Entrypoint": ["/pause"]})


def ensure_test() -> Image:
    """The base image under a name of its own, for tests that need no more than a Python."""

    def make() -> tuple[Image, Sequence[str]]:
        return described(TEST_IMAGE, base_image.ensure()), ()

    return Record.named("base").ensure(base_image.reference(), make)


def ensure_built(recipe: Recipe) -> Image:
    """The image of a Dockerfile, built if any of its inputs has changed."""
    arguments = {"PYTHON_IMAGE": base_image.reference(), **dict(recipe.arguments)}

    def make() -> tuple[Image, Sequence[str]]:
        base_image.ensure()
        log = cache_root() / "logs" / f"image-{recipe.slug}.log"
        with step(f"building image {recipe.name}"):
            built = builder.build(recipe.file, context=CHECKOUT, arguments=arguments, log=log)
        return described(recipe.name, built.image_id), built.steps

    key = inputs.digest(CHECKOUT, recipe.file, json.dumps(arguments))
    return Record.named(recipe.slug).ensure(key, make)


def described(name: str, image_id: str) -> Image:
    return Image(name, image_id, tuple(builder.layers(image_id)), builder.configuration(image_id))


@dataclass(frozen=True)
class Record:
    """A file that says what was built last, and from what."""

    file: Path

    @classmethod
    def named(cls, slug: str) -> Record:
        return cls(folder() / f"{slug}.json")

    def read(self) -> dict[str, Any]:
        try:
            said: dict[str, Any] = json.loads(self.file.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return said

    def ensure(self, key: str, make: Callable[[], tuple[Image, Sequence[str]]]) -> Image:
        """The image made from these inputs; only making one waits for others that are being made."""
        if image := self.recall(key):
            return image
        with locked(folder() / "lock"):
            if image := self.recall(key):
                return image
            image, steps = make()
            self.write(key, image, steps)
            discard_unused()
        return image

    def recall(self, key: str) -> Image | None:
        """The image, if it was built from the same inputs and is still there."""
        said = self.read()
        if said.get("key") != key:
            return None
        image = Image(said["name"], said["image_id"], tuple(map(Path, said["layers"])), said["config"])
        return image if image.present else None

    def write(self, key: str, image: Image, steps: Sequence[str]) -> None:
        fields = asdict(image) | {"layers": [str(layer) for layer in image.layers]}
        unfinished = self.file.with_suffix(".new")
        unfinished.write_text(json.dumps({"key": key, "steps": list(steps)} | fields))
        unfinished.rename(self.file)


def discard_unused() -> None:
    """Remove images of earlier builds, and the steps that led to them, unless a cluster may be running on them."""
    if any_cluster():
        return
    records = [Record.named(slug).read() for slug in ("base", *(recipe.slug for recipe in RECIPES))]
    used = {each for said in records for each in (*said.get("steps", ()), said.get("image_id"))}
    builder.discard(builder.image_ids() - used)


def load(image: Image, node: Node) -> None:
    """Give an image to a node's containerd; an older one of the same name is replaced."""
    # Under a name of its own until its layers are linked: a pod that starts meanwhile must not get the tiny ones.
    temporary = f"{image.full_name.rpartition(':')[0]}:loading-{image.image_id[:12]}"
    archive = node.folder / f"image-{image.image_id[:12]}.tar"
    archive.write_bytes(archive_of(image, temporary))
    node.ctr("images", "import", archive)
    link_layers(node.snapshots)
    node.ctr("images", "tag", "--force", temporary, image.full_name)
    node.ctr("images", "remove", temporary)
    archive.unlink()


def link_layers(snapshots: Path) -> None:
    """Replace every unpacked tiny layer by a link to the folder that it names."""
    for marker in snapshots.glob(f"*/fs/{MARKER}"):
        unpacked = marker.parent
        target = Path(marker.read_text())
        shutil.rmtree(unpacked)
        unpacked.symlink_to(target)


def archive_of(image: Image, name: str) -> bytes:
    """An OCI archive with one tiny layer for each of the image's layers."""
    layers = [tar({MARKER: str(layer).encode()}) for layer in image.layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": image.config,
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
    }
    blobs = [json.dumps(config).encode(), *layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", blobs[0]),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer) for layer in layers],
    }
    blobs.append(json.dumps(manifest).encode())
    entry = descriptor(manifest["mediaType"], blobs[-1]) | {"annotations": {"io.containerd.image.name": name}}
    index = {"schemaVersion": 2, "manifests": [entry]}
    return tar(
        {
            "oci-layout": json.dumps({"imageLayoutVersion": "1.0.0"}).encode(),
            "index.json": json.dumps(index).encode(),
            **{f"blobs/sha256/{digest(blob).removeprefix('sha256:')}": blob for blob in blobs},
        }
    )


def descriptor(media_type: object, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(blob), "size": len(blob)}


def digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def tar(entries: dict[str, bytes]) -> bytes:
    """An archive of these files that is the same whenever it is made."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
