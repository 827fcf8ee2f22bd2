"""When the operator restarts the ranks, how soon, and when it stops trying."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StrictInt, StringConstraints

from dpo_operator.api.base import ApiModel


class FailureAction(StrEnum):
    """What follows a failure."""

    FAIL = "Fail"
    RESTART = "Restart"
    RESTART_UNCOUNTED = "RestartUncounted"


class FailureRule(ApiModel):
    """What to do about failures of one kind. Every matcher that is given must match, and one at least must be given."""

    exit_codes: list[Annotated[StrictInt, Field(ge=1, le=255)]] = Field(
        default=[], max_length=255, description="Exit codes of the container that failed; any of them matches."
    )
    reasons: list[Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9]*$", max_length=63)]] = Field(
        default=[],
        max_length=32,
        description="Reasons as in status.restartHistory, such as Hang, OOMKilled or VolumeError; any of them matches.",
    )
    # A text and no pattern: a pattern can be written so that matching it never ends.
    message_contains: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Text that the failure's message contains; upper and lower case differ.",
    )
    action: FailureAction = Field(
        description="Fail: end the job. Restart: restart and count. RestartUncounted: restart without counting, at most three times in a row "
        "without a new step (ten times in prepare and export)."
    )


class FailurePolicy(ApiModel):
    """When to restart, and when to stop trying."""

    max_restarts: StrictInt = Field(
        default=5, ge=0, le=10_000, description="Counted restarts allowed within the window."
    )
    window_seconds: StrictInt = Field(
        default=3600, ge=1, le=31_536_000, description="Restarts older than this are forgotten."
    )
    hang_timeout_seconds: StrictInt = Field(
        default=300,
        ge=10,
        le=86_400,
        description="Restart the ranks if no forward pass and no part of a checkpoint finishes for this long, seconds.",
    )
    start_timeout_seconds: StrictInt = Field(
        default=1800,
        ge=10,
        le=86_400,
        description="The same limit while an attempt loads, before its first finished work, seconds; at least hangTimeoutSeconds.",
    )
    gang_timeout_seconds: StrictInt = Field(
        default=300,
        ge=10,
        le=86_400,
        description="A gang that does not get a node for each pod within this time releases its nodes and waits for another turn. At most 60 "
        "while other jobs wait for theirs. This is not a restart. In a queue, which decides when a gang starts, it is a restart that is not "
        "counted.",
    )
    backoff_seconds: StrictInt = Field(
        default=2,
        ge=1,
        le=3600,
        description="Delay before the second restart, doubled for each further one; the first restart is immediate. Five times as long "
        "when a hub or an object store can't be reached, from the first restart on.",
    )
    max_backoff_seconds: StrictInt = Field(
        default=60,
        ge=1,
        le=3600,
        description="Maximum delay, seconds. Restarts older than ten times this value do not lengthen it.",
    )
    rules: list[FailureRule] = Field(
        default=[],
        max_length=20,
        description="Exceptions to the classes of the exit codes; the first rule that matches decides.",
    )
