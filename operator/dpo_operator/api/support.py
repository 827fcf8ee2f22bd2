"""What the API already accepts and this version does not do yet. Such a job fails at once with a condition that says so."""

from dpo_operator.api.training import AdapterType
from dpo_operator.api.types import DPOJobSpec


def unsupported(spec: DPOJobSpec) -> list[str]:
    """Sentences, one for each setting that is not implemented; empty when the job can run."""
    problems = []
    if spec.adapter.type is AdapterType.QLORA:
        problems.append("spec.adapter.type: qlora is not implemented yet; use lora or none")
    if spec.training.zero_stage != 3:
        problems.append(f"spec.training.zeroStage: {spec.training.zero_stage} is not implemented yet; use 3")
    if spec.training.offload == "nvme":
        problems.append("spec.training.offload: nvme is not implemented yet; use cpu or none")
    if spec.pod.network.host_network:
        problems.append("spec.pod.network.hostNetwork: true is not implemented yet; leave it out")
    if spec.pod.network.rdma_resource is not None:
        problems.append("spec.pod.network.rdmaResource is not implemented yet; leave it out")
    return problems
