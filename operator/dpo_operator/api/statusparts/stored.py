"""Parts of the status: where a job's files are, its newest checkpoint, and the copies of both that left the volume."""

from pydantic import Field

from dpo_operator.api.conditions import StatusModel, Time


class CheckpointStatus(StatusModel):
    """Newest committed checkpoint."""

    step: int = Field(ge=0, description="Optimizer steps that it contains.")
    path: str = Field(max_length=1024, description="Folder, relative to the job's folder on the volume.")
    digest: str = Field(max_length=128, description="SHA-256 of its manifest, hex.")
    attempt: int = Field(ge=0, description="Attempt that wrote it.")
    time: Time = Field(description="When it was committed.")


class ResumedStatus(StatusModel):
    """The checkpoint of another job that training began with."""

    source: str = Field(max_length=1024, description="Where it was read.")
    step: int = Field(ge=0, description="Optimizer steps that it contains.")
    digest: str = Field(max_length=64, description="SHA-256 of its manifest there, hex.")


class MirrorStatus(StatusModel):
    """Copies of checkpoints in the object store of checkpoint.mirror."""

    copies: int = Field(default=0, ge=0, description="Copies that were begun; each is a Job of its own.")
    ended: int = Field(default=0, ge=0, description="Newest of them whose end was noted.")
    tried: str = Field(
        default="", max_length=64, description="Digest of the newest checkpoint that a copy was begun for."
    )
    checkpoint: CheckpointStatus | None = Field(
        default=None, description="Newest checkpoint that the mirror has whole."
    )


class PushStatus(StatusModel):
    """A copy of the trained model in an object store, on a hub or in a registry."""

    to: str = Field(max_length=512, description="Its folder, repository or tag.")
    digest: str = Field(
        max_length=64, description="SHA-256 of dpo_provenance.json, which has the digest of each file, hex."
    )
    commit: str | None = Field(default=None, max_length=64, description="Commit in the hub repository.")
    manifest: str | None = Field(
        default=None, max_length=80, description="Digest of the manifest in the registry, sha256:hex."
    )


class ExportStatus(StatusModel):
    """The trained model."""

    path: str = Field(max_length=1024, description="Folder, relative to the job's folder on the volume.")
    pushed: PushStatus | None = Field(default=None, description="Its copy, with export.push.")


class VolumeStatus(StatusModel):
    """Where the job's files are."""

    claim_name: str = Field(description="PersistentVolumeClaim.")
    claim_uid: str = Field(default="", description="Its UID; if it changes, the job's files are lost.")
    folder: str = Field(description="Folder of this job on the volume: its UID.")
    capacity_bytes: int | None = Field(default=None, ge=0, description="Size of the file system, as rank 0 sees it.")
    free_bytes: int | None = Field(
        default=None, ge=0, description="Free space; updated when it changes by 5% of the size."
    )
