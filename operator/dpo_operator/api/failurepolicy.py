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
        description="Fail: end the job. Restart: restart and count. RestartUncounted: restart without counting; that ends, too, after "
        "three restarts in a row without a finished step, or ten of a phase that has no steps."
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
        description="Time in which no forward pass and no part of a checkpoint is finished, after which the ranks are restarted.",
    )
    start_timeout_seconds: StrictInt = Field(
        default=1800,
        ge=10,
        le=86_400,
        description="The same before an attempt's first finished work, while it loads: time without any news after which the ranks are "
        "restarted; hangTimeoutSeconds where that is longer.",
    )
    gang_timeout_seconds: StrictInt = Field(
        default=300,
        ge=10,
        le=86_400,
        description="Time after which a gang that has not a node for each of its pods gives back those it has, and waits for another turn. "
        "At most 60 while other jobs wait for theirs. It counts as no restart. In a queue, which decides when a gang begins, it is a restart that "
        "is not counted.",
    )
    backoff_seconds: StrictInt = Field(
        default=2,
        ge=1,
        le=3600,
        description="Wait before the second restart; each further one waits twice as long. The first is immediate. Five times as long "
        "when a hub or an object store can't be reached, from the first restart on.",
    )
    max_backoff_seconds: StrictInt = Field(
        default=60,
        ge=1,
        le=3600,
        description="Longest such wait; restarts that are ten times as old no longer lengthen it.",
    )
    rules: list[FailureRule] = Field(
        default=[],
        max_length=20,
        description="Exceptions to the classes of the exit codes; the first rule that matches decides.",
    )
