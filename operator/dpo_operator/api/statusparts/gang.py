"""What a gang waits for, and which of its ranks is slow."""

from pydantic import Field

from dpo_operator.api.conditions import StatusModel, Time


class StragglerStatus(StatusModel):
    """A rank that is much slower than the others."""

    attempt: int = Field(ge=1, description="Training attempt.")
    rank: int = Field(ge=0, description="Rank among all processes.")
    ratio: str = Field(
        max_length=16, description="Its time for the same work, relative to the median of the other ranks."
    )
    pod: str = Field(default="", description="Its pod.")
    node: str = Field(default="", description="Node of that pod.")
    since: Time = Field(description="When it was noticed.")


class PlacementWait(StatusModel):
    """How long a gang has waited for nodes for all of its pods."""

    waiting_since: Time = Field(description="When it began to wait; the gang that has waited longest goes first.")
    timeouts: int = Field(default=0, ge=0, description="Placement time-outs so far.")
    not_before: Time | None = Field(default=None, description="Earliest next placement attempt.")
    had_nodes: bool | None = Field(default=None, description="True if its pods ran before it began to wait.")
