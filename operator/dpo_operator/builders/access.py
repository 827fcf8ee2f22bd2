"""Which pods reach object stores and hubs, and with whose keys. Ranks never do: what they need is on the volume."""

from dpo_operator.api import names
from dpo_operator.api.access import hub_repository, is_registry
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.shape import endpoint_of


def pushes(job: DPOJob) -> bool:
    """Whether the export pod copies the model to a store."""
    return job.spec.export.push is not None


def pushes_to_hub(job: DPOJob) -> bool:
    """Whether it copies the model to a hub."""
    return job.spec.export.push is not None and hub_repository(job.spec.export.push.to) is not None


def pushes_to_registry(job: DPOJob) -> bool:
    """Whether it copies the model to an OCI registry."""
    return job.spec.export.push is not None and is_registry(job.spec.export.push.to)


def registry_secret(job: DPOJob, phase: str) -> str | None:
    """Secret with the registry's user and password, in an export pod that pushes there; None without one."""
    push = job.spec.export.push
    if phase != "export" or push is None or not is_registry(push.to) or push.credentials_secret_ref is None:
        return None
    return push.credentials_secret_ref.name


def mirror_credentials(job: DPOJob) -> str | None:
    """Secret with the keys of the mirror alone; None without a mirror, or when it has the keys of the sources."""
    mirror = job.spec.checkpoint.mirror
    secret = None if mirror is None else mirror.credentials_secret_ref
    return None if secret is None else secret.name


def reaches_sources(job: DPOJob, phase: str) -> bool:
    """Whether a pod reaches stores and hubs, and so gets keys, an identity and a way out. phase: or mirror."""
    return phase in ("prepare", "mirror") or (phase == "export" and pushes(job))


def credentials_of(job: DPOJob, phase: str) -> str | None:
    """Secret with the keys of a pod that reaches stores; None without one, as in a mirror's pod that has keys of its own."""
    if phase == "mirror" and mirror_credentials(job) is not None:
        return None
    if phase == "export" and pushes_to_registry(job):
        return None
    own = (
        job.spec.export.push.credentials_secret_ref if phase == "export" and job.spec.export.push is not None else None
    )
    secret = own or job.spec.way_out.credentials_secret_ref
    return None if secret is None else secret.name


def has_identity(job: DPOJob, phase: str) -> bool:
    """Whether a phase's pod has the identity of a ServiceAccount in a cloud."""
    used = reaches_sources(job, phase) and not (phase == "export" and pushes_to_registry(job))
    return job.spec.pod.service_account_name is not None and used


def trusts_bundle(job: DPOJob, phase: names.PodKind) -> bool:
    """Whether a pod gets the certificates of access.caBundleRef: those that reach stores and hubs, and a judge that asks an endpoint."""
    reaches = reaches_sources(job, phase) or endpoint_of(job, phase) is not None
    return job.spec.way_out.ca_bundle_ref is not None and reaches
