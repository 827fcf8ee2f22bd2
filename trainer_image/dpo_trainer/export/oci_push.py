"""Copies an export to an OCI registry: all blobs, then the manifests, then the tag. Until then nobody sees a half of it.

Which uploads were begun is kept on the volume: after a kill they resume where the registry has them.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from dpo_operator.api.access import registry_parts
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import PushReport
from dpo_operator.api.training import Push
from dpo_trainer.export.oci_layout import EXPORT, INDEX, JOB, MANIFEST, digest_of, lay_out
from dpo_trainer.export.push import Progress, contents
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration
from dpo_trainer.runtime.files import commit
from dpo_trainer.sources.registry import Registry

# Of Docker; a tag may have one that somebody else pushed.
_OTHERS = (
    "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json",
)  # fmt: skip


class Uploads:
    """Locations of uploads that were begun, by digest, in a file."""

    def __init__(self, path: Path, to: str) -> None:
        """path: of the file. to: what is pushed to; uploads to another place are of no use."""
        self._path, self._to = path, to
        self._known: dict[str, str] = {}
        try:
            found = json.loads(path.read_bytes())
            if found["to"] == to:
                self._known = {str(digest): str(location) for digest, location in found["uploads"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            pass  # none, or what a crash left

    def of(self, digest: str) -> str | None:
        """Location of a blob's upload; None without one."""
        return self._known.get(digest)

    def note(self, digest: str, location: str) -> None:
        """Keep a location. Raises OSError."""
        self._known[digest] = location
        commit(self._path, json.dumps({"to": self._to, "uploads": self._known}).encode())

    def forget(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


def push_to_registry(settings: Push, uid: str, folder: Path, notes: Path, progress: Progress) -> PushReport:
    """Copy a verified export. uid: of the job. folder: the export. notes: file for the uploads that were begun. Does nothing when it is there already.

    Raises TrainerError: INVALID_CONFIGURATION when the tag is somebody else's, BAD_EXPORT when a file here is not what was verified, and what
    sources.registry raises; OSError.
    """
    host, repository, tag = registry_parts(settings.to)
    digest, files = contents(folder)
    form = settings.format or "image"
    annotations = {JOB: uid, EXPORT: digest}
    registry = Registry(host, repository, settings.to, settings.plain_http)
    try:
        there = registry.manifest(tag, (INDEX, MANIFEST, *_OTHERS))
        earlier = _annotations(there)
        if there is not None and earlier.get(JOB) != uid:
            raise invalid_configuration(
                f"spec.export.push.to: {settings.to} is there already, and not of this job; name a new tag, or delete this one"
            )
        content = lay_out(folder, files, form, annotations, progress)
        media_type, last = content.last
        report = PushReport(to=settings.to, digest=digest, manifest=digest_of(last), format=form)
        uploads = Uploads(notes, settings.to)
        if there == last:
            uploads.forget()
            progress(f"already pushed to {settings.to}")
            return report
        for number, blob in enumerate(content.blobs, start=1):
            progress(f"pushing blob {number} of {len(content.blobs)}, {blob.size >> 20} MiB")
            try:
                registry.upload(blob, uploads.of(blob.digest), partial(_went_on, uploads, progress, blob.digest))
            except EOFError as error:
                raise TrainerError(
                    ExitCode.BAD_EXPORT,
                    f"{settings.to}: the export changed after it was verified: {error}; export again",
                ) from error
        for kind, manifest in content.manifests:
            registry.put_manifest(digest_of(manifest), manifest, kind)
        registry.put_manifest(tag, last, media_type)
        if registry.manifest(tag, (INDEX, MANIFEST, *_OTHERS)) != last:
            raise TrainerError(ExitCode.SOURCE_UNAVAILABLE, f"{settings.to}: somebody else wrote to the tag meanwhile")
        uploads.forget()
        progress(f"pushed to {settings.to}")
        return report
    finally:
        registry.close()


def _went_on(uploads: Uploads, progress: Progress, digest: str, location: str) -> None:
    uploads.note(digest, location)
    progress("pushing")


def _annotations(manifest: bytes | None) -> dict[str, Any]:
    """Annotations of a manifest, whoever wrote it."""
    try:
        found = json.loads(manifest or b"{}")
        annotations = found.get("annotations") if isinstance(found, dict) else None
    except (ValueError, RecursionError):
        return {}
    return annotations if isinstance(annotations, dict) else {}
