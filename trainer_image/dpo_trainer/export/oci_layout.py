"""An export as content of an OCI registry: an image with the files below /models, or an artifact with a blob for each file.

Everything is a function of the files, so the same export has the same digests.
"""

import hashlib
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.files import sha256
from dpo_trainer.sources.registry import Blob

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
EMPTY = "application/vnd.oci.empty.v1+json"
ARTIFACT = "application/vnd.dpo-operator.export.v1"
# Whose a manifest is, and SHA-256 of the export's dpo_provenance.json.
JOB, EXPORT = "dev.dpo-operator.job-uid", "dev.dpo-operator.export"
TITLE = "org.opencontainers.image.title"
# The files are the same on both; a node takes an image of its own platform alone.
_ARCHITECTURES = ("amd64", "arm64")
_FOLDER = "models"
# Files from this size on have a layer of their own, so that a layer can be skipped or sent again by itself.
_LARGE = 64 << 20
# Layers that all container runtimes can stack.
_MOST_LAYERS = 100


@dataclass(frozen=True)
class Content:
    """What is pushed: blobs first, then the manifests by their digests, then the last one, by the tag.

    manifests, last: media type and content.
    """

    blobs: tuple[Blob, ...]
    manifests: tuple[tuple[str, bytes], ...]
    last: tuple[str, bytes]


def lay_out(
    folder: Path,
    files: dict[str, str],
    form: Literal["image", "artifact"],
    annotations: dict[str, str],
    progress: Callable[[str], None],
) -> Content:
    """Lay out an export. files: SHA-256 of each, hex. annotations: of the last manifest. progress: called while files are read.

    Raises TrainerError BAD_EXPORT when a file is not the one that was verified; OSError.
    """
    if form == "artifact":
        return _artifact(folder, files, annotations, progress)
    layers = [_layer(folder, group, files, progress) for group in _groups(folder, files)]
    blobs, manifests, descriptors = list(layers), [], []
    for architecture in _ARCHITECTURES:
        rootfs = {"type": "layers", "diff_ids": [layer.digest for layer in layers]}
        config = _json_blob({"architecture": architecture, "os": "linux", "config": {}, "rootfs": rootfs})
        blobs.append(config)
        manifest = _document(
            {
                "schemaVersion": 2, "mediaType": MANIFEST, "config": _descriptor(CONFIG, config),
                "layers": [_descriptor(LAYER, layer) for layer in layers], "annotations": annotations,
            }
        )  # fmt: skip
        manifests.append((MANIFEST, manifest))
        platform = {"architecture": architecture, "os": "linux"}
        descriptors.append(
            {"mediaType": MANIFEST, "digest": digest_of(manifest), "size": len(manifest), "platform": platform}
        )
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": descriptors, "annotations": annotations}
    return Content(tuple(blobs), tuple(manifests), (INDEX, _document(index)))


def digest_of(content: bytes) -> str:
    """The digest by which a registry knows content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _changed(name: str) -> TrainerError:
    return TrainerError(ExitCode.BAD_EXPORT, f"{name} of the export is not the file that was verified; export again")


def _artifact(
    folder: Path, files: dict[str, str], annotations: dict[str, str], progress: Callable[[str], None]
) -> Content:
    named = [(name, folder / name) for name in sorted(files)]
    for name, path in named:
        progress(f"reading {name}")
        if sha256(path) != files[name]:
            raise _changed(name)
    blobs = [Blob(f"sha256:{files[name]}", path.stat().st_size, ((path, path.stat().st_size),)) for name, path in named]
    config = _json_blob({})
    manifest = {
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": ARTIFACT, "config": _descriptor(EMPTY, config), "annotations": annotations,
        "layers": [
            _descriptor("application/octet-stream", blob) | {"annotations": {TITLE: name}}
            for blob, (name, _) in zip(blobs, named, strict=True)
        ],
    }  # fmt: skip
    return Content((*{blob.digest: blob for blob in (*blobs, config)}.values(),), (), (MANIFEST, _document(manifest)))


def _groups(folder: Path, files: dict[str, str]) -> list[list[str]]:
    """Names of the files of each layer: the small ones together, the large ones alone, or several in one where there are too many."""
    sizes = {name: (folder / name).stat().st_size for name in sorted(files)}
    large = [name for name in sizes if sizes[name] >= _LARGE]
    together = -(-len(large) // (_MOST_LAYERS - 1)) or 1
    small = [name for name in sizes if sizes[name] < _LARGE]
    return [*(large[at : at + together] for at in range(0, len(large), together)), *([small] if small else [])]


def _layer(folder: Path, group: list[str], files: dict[str, str], progress: Callable[[str], None]) -> Blob:
    """A tar archive with some files, whose content is read once, for its digest."""
    parts: list[bytes | tuple[Path, int]] = []
    whole = hashlib.sha256()
    above: set[str] = set()

    def add(head: bytes) -> None:
        parts.append(head)
        whole.update(head)

    for name in group:
        path, size = folder / name, (folder / name).stat().st_size
        for parent in [*Path(_FOLDER, name).parents][-2::-1]:
            if str(parent) not in above:
                above.add(str(parent))
                add(_header(f"{parent}/", 0))
        add(_header(f"{_FOLDER}/{name}", size))
        progress(f"reading {name}")
        parts.append((path, size))
        own = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                own.update(piece)
                whole.update(piece)
        if own.hexdigest() != files[name]:
            raise _changed(name)
        add(b"\0" * (-size % tarfile.BLOCKSIZE))
    add(b"\0" * (2 * tarfile.BLOCKSIZE))
    size = sum(len(part) if isinstance(part, bytes) else part[1] for part in parts)
    return Blob(f"sha256:{whole.hexdigest()}", size, tuple(parts))


def _header(name: str, size: int) -> bytes:
    """Head of a file in an archive, or of a folder, whose name ends in a slash: readable by all, of root, without a time."""
    info = tarfile.TarInfo(name.rstrip("/"))
    info.size, info.mode = size, 0o644
    if name.endswith("/"):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info.tobuf(tarfile.PAX_FORMAT)


def _descriptor(media_type: str, blob: Blob) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}


def _json_blob(content: dict[str, Any]) -> Blob:
    document = json.dumps(content, sort_keys=True).encode()
    return Blob(digest_of(document), len(document), (document,))


def _document(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True).encode()
