"""Compares the DPOJob versions that the watch delivered with those that lists show."""

from collections import deque
from collections.abc import Mapping

from dpo_operator.queueing.key import Key

REMEMBERED_VERSIONS = 16


class Deliveries:
    """The last versions that the watch delivered of each job. More than one, because events may arrive out of order."""

    def __init__(self) -> None:
        self._versions: dict[Key, deque[str]] = {}
        self._missing: dict[Key, str] = {}
        self._passes_missing = 0

    def add(self, key: Key, version: str) -> None:
        """The watch delivered a job in this resourceVersion."""
        self._versions.setdefault(key, deque(maxlen=REMEMBERED_VERSIONS)).append(version)

    def remove(self, key: Key) -> None:
        """The watch delivered the deletion of a job."""
        self._versions.pop(key, None)

    def keys(self) -> list[Key]:
        """Jobs that the watch delivered and that were not deleted since."""
        return list(self._versions)

    def compare(self, listed: Mapping[Key, str]) -> int:
        """Count the jobs that this list and the one before show in the same version, which the watch has not delivered.

        listed: resourceVersion of each job in a list. Between a write and its event some versions are always missing;
        the same one in two lists means a stuck watch.
        """
        missing = {key: version for key, version in listed.items() if version not in self._versions.get(key, ())}
        twice = sum(1 for key, version in missing.items() if self._missing.get(key) == version)
        self._passes_missing = self._passes_missing + 1 if twice else 0
        self._missing = missing
        return twice

    @property
    def is_stuck(self) -> bool:
        """Whether the last two comparisons both counted a job."""
        return self._passes_missing >= 2
