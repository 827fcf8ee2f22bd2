"""The key of a job, and the lane that it waits in."""

from dataclasses import dataclass
from typing import Literal

LaneName = Literal["normal", "slow"]


@dataclass(frozen=True, order=True)
class Key:
    """Namespace and name of a DPOJob."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
