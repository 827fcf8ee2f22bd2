"""What Kubernetes says about pods that it can't make or start, in the reasons of this operator.

Its words are for people and differ between versions, so a text that is not known still gets a general reason.
"""

import re
from collections.abc import Iterable

from dpo_operator.api import conditions as c
from dpo_operator.planning.objects import ChildJob, ChildPod, Notice

Reason = tuple[str, str]

# The first that is found in a refusal decides.
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
# Pods that a Job makes have random names, and repeated events lose their own words: a message must not change for that.
_RANDOM_NAME = re.compile(r'pods "[^"]*"')
_COMBINED = re.compile(r"^\(combined from similar events\): ")


def refusal(message: str, otherwise: str) -> Reason:
    """Why a request was refused. otherwise: reason of a refusal whose words are not known."""
    if 'resource "podgroups"' in message:
        message += ". The operator was installed without this queue: set queues.volcano.enabled or queues.schedulerPlugins.enabled of its chart."
    return next((reason for words, reason in _REFUSALS if words in message), otherwise), message


def is_missing_secret(message: str) -> bool:
    """Whether a kubelet complains that a Secret, or its key, does not exist."""
    return _MISSING_SECRET.search(message) is not None


def is_missing_claim(message: str) -> bool:
    """Whether the scheduler complains that a claim does not exist."""
    return _MISSING_CLAIM.search(message) is not None


def job_notice(child: ChildJob, notices: Iterable[Notice]) -> Reason | None:
    """Why a Job's pods are not made, or None while nobody said so."""
    said = [n for n in notices if n.uid == child.uid and n.reason == "FailedCreate"]
    if not said:
        return None
    words = _RANDOM_NAME.sub("pods", _COMBINED.sub("", said[-1].message))
    reason, _ = refusal(words, c.PODS_REFUSED)
    return reason, f"Kubernetes refuses the pods of Job {child.name}: {words}"


def pod_notice(pod: ChildPod, notices: Iterable[Notice]) -> Reason | None:
    """Why a pod that has a node does not start, or None while nobody said so. Only the newest word counts."""
    said = [n for n in notices if n.uid == pod.uid]
    if not said or said[-1].reason not in _MOUNTS:
        return None
    words = _COMBINED.sub("", said[-1].message)
    reason = c.SECRET_NOT_FOUND if is_missing_secret(words) else c.MOUNT_FAILED
    return reason, f"Pod {pod.name} can't mount its volumes: {words}"
