"""Maps Kubernetes' messages about refused pods, and pods that can't start, to our reasons.

Messages are no API and differ between versions, so an unknown one gets a generic reason.
"""

import re
from collections.abc import Iterable

from dpo_operator.api import conditions as c
from dpo_operator.api.text import quoted
from dpo_operator.planning.objects import ChildJob, ChildPod, Notice

Reason = tuple[str, str]

# The first substring that matches decides.
_REFUSALS: tuple[tuple[str, str], ...] = (
    ("exceeded quota", c.QUOTA_EXCEEDED),
    ("failed quota", c.QUOTA_EXCEEDED),
    ("no PriorityClass with name", c.PRIORITY_CLASS_NOT_FOUND),
    ("admission webhook", c.ADMISSION_DENIED),
    ("failed calling webhook", c.ADMISSION_DENIED),
    ("ValidatingAdmissionPolicy", c.ADMISSION_DENIED),
    ("violates PodSecurity", c.ADMISSION_DENIED),
)
_MOUNTS = ("FailedMount", "FailedAttachVolume", "FailedMapVolume")
_MISSING_SECRET = re.compile(r'secret "[^"]*" not found|non-existent secret key')
_MISSING_CLAIM = re.compile(r'persistentvolumeclaim "[^"]*" not found')
# Normalize random pod names and aggregated events, so that the same cause gives the same message.
_RANDOM_NAME = re.compile(r'pods "[^"]*"')
_COMBINED = re.compile(r"^\(combined from similar events\): ")


def refusal(message: str, default: str) -> Reason:
    """Why a request was refused. default: reason when no pattern matches."""
    if 'resource "podgroups"' in message:
        message += ". The operator was installed without this queue: set queues.volcano.enabled or queues.schedulerPlugins.enabled of its chart."
    return next((reason for text, reason in _REFUSALS if text in message), default), message


def is_missing_secret(message: str) -> bool:
    """Whether a kubelet reports that a Secret, or its key, does not exist."""
    return _MISSING_SECRET.search(message) is not None


def is_missing_claim(message: str) -> bool:
    """Whether the scheduler reports that a claim does not exist."""
    return _MISSING_CLAIM.search(message) is not None


def job_notice(child: ChildJob, notices: Iterable[Notice]) -> Reason | None:
    """Why a Job's pods are not created, or None without such an event."""
    events = [n for n in notices if n.uid == child.uid and n.reason == "FailedCreate"]
    if not events:
        return None
    text = _RANDOM_NAME.sub("pods", _COMBINED.sub("", events[-1].message))
    reason, _ = refusal(text, c.PODS_REFUSED)
    return reason, f"Kubernetes refuses the pods of Job {child.name}: {quoted(text)}"


def pod_notice(pod: ChildPod, notices: Iterable[Notice]) -> Reason | None:
    """Why a pod that has a node does not start, or None without such an event. Only the newest event counts."""
    events = [n for n in notices if n.uid == pod.uid]
    if not events or events[-1].reason not in _MOUNTS:
        return None
    text = _COMBINED.sub("", events[-1].message)
    reason = c.SECRET_NOT_FOUND if is_missing_secret(text) else c.MOUNT_FAILED
    return reason, f"Pod {pod.name} can't mount its volumes: {quoted(text)}"
