"""Part of the status: what a job has used."""

from pydantic import Field

from dpo_operator.api.conditions import StatusModel, Time


class UsageStatus(StatusModel):
    """GPU time, from the moment when all pods of an attempt run until they end. Attempts that failed count, too."""

    gpu_seconds: int = Field(default=0, ge=0, description="GPU time of attempts that ended, seconds times GPUs.")
    gpu_hours: str = Field(default="0", max_length=32, description="gpuSeconds in hours.")
    gpus: int = Field(default=0, ge=0, description="GPUs of the attempt that runs now; they count when it ends.")
    since: Time | None = Field(default=None, description="When all of its pods ran; absent while none runs.")
