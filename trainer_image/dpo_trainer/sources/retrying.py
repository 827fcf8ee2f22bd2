"""Retrying a fetch, and explaining why it failed."""

import logging
from collections.abc import Callable
from typing import TypeVar

import tenacity

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime import volume_errors
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.volume_errors import Kind

log = logging.getLogger(__name__)
T = TypeVar("T")

# Waits between tries of a source that does not answer, in seconds: 1, 2, 4, … with jitter. The operator restarts the
# phase when they are used up, so a longer outage is not fatal.
ATTEMPTS = 4
FIRST_WAIT_SECONDS = 1.0
GATED = (
    "the repository is gated: accept its terms on its page, with the account whose token the job uses, and set model.tokenSecretRef "
    "(HF_TOKEN for dpo run)"
)


def retrying(call: Callable[[], T], label: str) -> T:
    """Result of a call to a hub; retried while the service is unreachable.

    Raises TrainerError for every error that means something to the user; others pass through.
    """
    try:
        return tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=tenacity.wait_exponential_jitter(FIRST_WAIT_SECONDS, max=30, jitter=FIRST_WAIT_SECONDS),
            retry=tenacity.retry_if_exception(_is_transient),
            before_sleep=lambda state: log.warning("%s: no answer, retrying (%d)", label, state.attempt_number),
            reraise=True,
        )(call)
    except Exception as error:
        known = explain(error, label)
        if known is None or known is error:
            raise
        raise known from error


def explain(error: BaseException, label: str) -> TrainerError | None:
    """TrainerError for an error of the hub or of the network; None for other errors.

    Libraries wrap errors, so the causes are checked too.
    """
    if no_space(error) is not None:
        return None
    for seen in _causes(error):
        if isinstance(seen, TrainerError):
            return seen
        found = _explain_one(seen, label)
        if found is not None:
            code, message = found
            return TrainerError(code, f"{label}: {message}")
    return None


def no_space(error: BaseException) -> OSError | None:
    """The OSError of a full volume among an error and its causes; None when it is not one."""
    errors = (seen for seen in _causes(error) if isinstance(seen, OSError))
    return next((seen for seen in errors if volume_errors.kind(seen) in (Kind.FULL, Kind.QUOTA)), None)


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what it came from, each once: some are their own cause."""
    found: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and not any(seen is one for one in found):
        found.append(seen)
        seen = seen.__cause__ or seen.__context__
    return found


def _explain_one(error: BaseException, label: str) -> tuple[ExitCode, str] | None:
    from huggingface_hub import errors as hub

    status = _status(error)
    if isinstance(error, hub.GatedRepoError):
        return ExitCode.ACCESS_DENIED, GATED
    if status in (401, 403):
        return ExitCode.ACCESS_DENIED, (
            f"access was refused (HTTP {status}): the name is wrong, or it is private and the token is missing or does not reach it; set "
            "model.tokenSecretRef (HF_TOKEN for dpo run) to a token that can read it"
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return ExitCode.INPUT_NOT_FOUND, "the repository has no such revision; use a branch, a tag or a commit of it"
    if isinstance(error, hub.OfflineModeIsEnabled):
        return ExitCode.SOURCE_UNAVAILABLE, "the hub may not be asked, because HF_HUB_OFFLINE is set; unset it"
    if _is_transient(error):
        reason = f"HTTP {status}" if status else type(error).__name__
        return (
            ExitCode.SOURCE_UNAVAILABLE,
            f"no answer ({reason}) after {ATTEMPTS} tries; check the network and try later",
        )
    if status == 404 or isinstance(error, hub.EntryNotFoundError | FileNotFoundError):
        return ExitCode.INPUT_NOT_FOUND, "not found; check the name, and the current folder if a path was meant"
    if isinstance(error, hub.HFValidationError):
        return ExitCode.INVALID_CONFIGURATION, "not a valid hub id; expected org/name"
    return None


def _status(error: BaseException) -> int | None:
    """HTTP status of an error of huggingface_hub or of what datasets uses; None without one."""
    response = getattr(error, "response", None)
    for value in (getattr(response, "status_code", None), getattr(error, "status", None), getattr(error, "code", None)):
        if isinstance(value, int) and 400 <= value < 600:
            return value
    return None


def _is_transient(error: BaseException) -> bool:
    from huggingface_hub import errors as hub

    status = _status(error)
    if status is not None:
        return status in (408, 425, 429) or status >= 500
    if isinstance(error, hub.OfflineModeIsEnabled):
        return False
    # LocalEntryNotFoundError is how huggingface_hub says that neither the network nor its cache has the file.
    network = (hub.HTTPError, hub.LocalEntryNotFoundError, ConnectionError, TimeoutError)
    return isinstance(error, network)
