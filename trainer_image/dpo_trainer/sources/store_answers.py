"""What errors of object stores mean for the user."""

import re

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime.errors import TrainerError

# What stores answer, as their documentation lists it: the answer's code, the exit code, and what it means for the user.
_ANSWERS: dict[str, tuple[ExitCode, str]] = {
    "InvalidAccessKeyId": (
        ExitCode.ACCESS_DENIED,
        "the store does not know this key; correct AWS_ACCESS_KEY_ID in {keys}, or spec.access.s3.endpoint if it is the key of another store",
    ),
    "XAdminUserNotFound": (ExitCode.ACCESS_DENIED, "the store does not know this key; correct AWS_ACCESS_KEY_ID in {keys}"),
    "SignatureDoesNotMatch": (ExitCode.ACCESS_DENIED, "the key is wrong; correct AWS_SECRET_ACCESS_KEY in {keys}"),
    "ExpiredToken": (ExitCode.ACCESS_DENIED, "the key has expired; put a new one into {keys}"),
    "InvalidToken": (ExitCode.ACCESS_DENIED, "the session token is wrong or has expired; correct AWS_SESSION_TOKEN in {keys}"),
    "RequestTimeTooSkewed": (ExitCode.SOURCE_UNAVAILABLE, "this node's clock and the store's differ too much; correct the clock"),
    "NoSuchBucket": (ExitCode.INPUT_NOT_FOUND, "there is no such bucket; correct its name, or the endpoint in spec.access"),
    "ContainerNotFound": (ExitCode.INPUT_NOT_FOUND, "there is no such container; correct its name, or spec.access.azure.account"),
    "PermanentRedirect": (ExitCode.INVALID_CONFIGURATION, "the bucket is in another region; set spec.access.s3.region"),
    "AuthorizationHeaderMalformed": (ExitCode.INVALID_CONFIGURATION, "the bucket is in another region; set spec.access.s3.region"),
    "IncorrectRegion": (ExitCode.INVALID_CONFIGURATION, "the bucket is in another region; set spec.access.s3.region"),
    "AuthenticationFailed": (ExitCode.ACCESS_DENIED, "the key is wrong or has expired; correct {keys}, and spec.access.azure.account"),
}  # fmt: skip
_CODE = re.compile(r"<Code>([A-Za-z]{1,64})</Code>")
_STATUS = re.compile(r"status code: ([45][0-9]{2})|with status ([45][0-9]{2})")
_REFUSED = (
    "access was refused{code}: the name is wrong, or it is private and the key is missing or does not reach it; set {named}, "
    "or pod.serviceAccountName, to one that can"
)


def changed(label: str) -> TrainerError:
    """The error for an object that somebody replaces while the job reads it."""
    return TrainerError(
        ExitCode.SOURCE_UNAVAILABLE,
        f"{label}: the object changed while it was read; let nobody write to a source while a job reads it",
    )


def explain(error: BaseException, label: str, *, where: str, named: str, tries: int) -> TrainerError | None:
    """TrainerError for an error of obstore; None for another.

    where: the store's name or address. named: field of the job that names the Secret with the keys. tries: of one request.

    The store's answer is not quoted, but for its code: it repeats the request, and with it the key's id.
    """
    if isinstance(error, TrainerError):
        return error
    name, text = type(error).__name__, str(error)
    if not (type(error).__module__.startswith("obstore") or isinstance(error, FileNotFoundError)):
        return None
    codes = _CODE.findall(text)
    for code in codes:
        if code in _ANSWERS:
            exit_code, advice = _ANSWERS[code]
            keys = f"the Secret of {named}"
            return TrainerError(exit_code, f"{label}: {advice.format(keys=keys)} ({code})")
    shown = f" ({codes[0]})" if codes else ""
    if name in ("PermissionDeniedError", "UnauthenticatedError") or {"AccessDenied", "AuthorizationFailure"} & set(
        codes
    ):
        return TrainerError(ExitCode.ACCESS_DENIED, f"{label}: {_REFUSED.format(code=shown, named=named)}")
    if name == "PreconditionError":
        return changed(label)
    if isinstance(error, FileNotFoundError):
        return TrainerError(ExitCode.INPUT_NOT_FOUND, f"{label}: there is no such object; check its name")
    if "response body error" in text:
        return TrainerError(
            ExitCode.SOURCE_UNAVAILABLE,
            f"{label}: {where} cut its answer off, {tries} times and more; check the network and try later",
        )
    if "invalid peer certificate" in text or "UnknownIssuer" in text:
        return TrainerError(
            ExitCode.SOURCE_UNAVAILABLE,
            f"{label}: {where} has a certificate that is not trusted; name the authority's in spec.access.caBundleRef, or correct the endpoint",
        )
    if "HTTP error" in text or "error sending request" in text:
        return TrainerError(
            ExitCode.SOURCE_UNAVAILABLE,
            f"{label}: {where} gave no answer after {tries} tries; check the endpoint in spec.access, and that the pod may reach it (the chart's values "
            "network.open and network.openNamespaces)",
        )
    status = next((a or b for a, b in _STATUS.findall(text)), "")
    again = f" after {tries} tries" if status.startswith("5") else ""
    return TrainerError(
        ExitCode.SOURCE_UNAVAILABLE,
        f"{label}: {where} answered with an error{f' (HTTP {status})' if status else ''}{shown}{again}; try later",
    )
