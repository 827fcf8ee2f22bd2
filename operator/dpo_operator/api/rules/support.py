"""What the API already accepts and this version does not do yet. Such a job fails at once with a condition that says so."""

from dpo_operator.api.model import AdapterType
from dpo_operator.api.types import DPOJobSpec


def unsupported(spec: DPOJobSpec) -> list[str]:
    """Sentences, one for each setting that is not implemented; empty when the job can run."""
    problems = []
    if spec.adapter.type is AdapterType.QLORA and spec.adapter.dora:
        problems.append(
            "spec.adapter.dora: not implemented with qlora, whose weights are in 4 bits; leave it out, or use lora"
        )
    if spec.training.zero_stage != 3:
        problems.append(
            f"spec.training.zeroStage: {spec.training.zero_stage} is not implemented, because checkpoints have ZeRO-3's layout; use 3"
        )
    if spec.training.offload == "nvme":
        problems.append("spec.training.offload: nvme is not implemented yet; use cpu or none")
    has_gpu = spec.gpus_per_node > 0 and spec.training.device != "cpu"
    if spec.training.precision == "fp16" and not has_gpu:
        problems.append("spec.training.precision: fp16 is not implemented on CPUs; use bf16 or fp32")
    if spec.training.optimizer == "adamw-8bit" and spec.training.offload != "none":
        problems.append(
            f"spec.training.offload: {spec.training.offload} is not implemented for optimizer adamw-8bit, whose state is small "
            "enough for the GPU; use none, or optimizer adamw"
        )
    if spec.sweep is not None and spec.checkpoint.mirror is not None:
        problems.append(
            "spec.checkpoint.mirror: not implemented with sweep yet; leave it out, and back up the volume instead"
        )
    if spec.iterative is not None and spec.checkpoint.mirror is not None:
        problems.append(
            "spec.checkpoint.mirror: not implemented with iterative yet; leave it out, and back up the volume instead"
        )
    return problems
