"""Steps that were skipped since the newest checkpoint, beside the checkpoints.

A checkpoint names the steps that were skipped before it. After a rollback the next one is several steps away, and a process that dies before
would forget the step that made it roll back, and so how many there were.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from dpo_trainer.checkpoint.layout import SKIPPED
from dpo_trainer.checkpoint.plain_files import read_plain, sanitized
from dpo_trainer.runtime.errors import volume_error
from dpo_trainer.runtime.files import commit

_MAX_BYTES = 1 << 20


def remember_skipped(root: Path, steps: Sequence[int]) -> None:
    """Replace the record, durably. steps: in the order in which they failed. Raises OSError."""
    commit(root / SKIPPED, json.dumps(list(steps)).encode())


def skipped(root: Path) -> list[int]:
    """The steps on record, none without one. Raises TrainerError VOLUME_ERROR for a damaged record, OSError."""
    try:
        raw = read_plain(root / SKIPPED, limit=_MAX_BYTES)
    except FileNotFoundError:
        return []
    try:
        steps = json.loads(raw)
    except (ValueError, RecursionError):
        steps = None
    if not isinstance(steps, list) or not all(type(step) is int and 0 < step <= 2**53 for step in steps):
        raise volume_error(
            f"{root / SKIPPED}: expected a list of steps, found {sanitized(raw[:80].decode(errors='replace'))}; delete that file to forget "
            "which steps were skipped since the newest checkpoint"
        )
    return steps
