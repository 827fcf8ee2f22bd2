"""What a rule over several fields of the spec is."""

from collections.abc import Callable
from dataclasses import dataclass

from dpo_operator.api.types import DPOJobSpec


@dataclass(frozen=True)
class Rule:
    """A condition that must hold on the spec.

    field: camelCase path inside spec that the message is about.
    cel: CEL expression over `self`, the spec. check: the same in Python.
    message: what is allowed. found: what a job has instead, in words, where that helps; not for the API server.
    """

    field: str
    cel: str
    check: Callable[[DPOJobSpec], bool]
    message: str
    found: Callable[[DPOJobSpec], str] = lambda _: ""
