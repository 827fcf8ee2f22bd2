"""Validation of a job; problems are sentences that name the field."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dpo_operator.api import conditions as c
from dpo_operator.api.rules.spec import violations
from dpo_operator.api.rules.support import unsupported
from dpo_operator.api.text import sentences
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.config import job_file

MAX_PROBLEMS = 10
# Fits a ConfigMap many times; a chat template of the largest size with values of the largest size fits, too.
MAX_JOB_FILE_BYTES = 256 * 1024


@dataclass(frozen=True)
class Problems:
    """Why a job can't be run. reason: InvalidSpec, Unsupported or NotAllowed."""

    reason: str
    sentences: tuple[str, ...]

    def describe(self) -> str:
        """All of them, up to a bound."""
        shown = "; ".join(self.sentences[:MAX_PROBLEMS])
        more = len(self.sentences) - MAX_PROBLEMS
        return shown + (f"; and {more} more" if more > 0 else "") + "."


def read_job(raw: Mapping[str, Any]) -> DPOJob | Problems:
    """Parse a stored object, which may be older than the CRD: a DPOJob or Problems."""
    try:
        return DPOJob.model_validate({k: raw[k] for k in ("apiVersion", "kind", "metadata", "spec") if k in raw})
    except ValidationError as error:
        return Problems(c.INVALID_SPEC, tuple(sentences(error)))


def validate(job: DPOJob) -> Problems | None:
    """Check rules over several fields, and features that this version lacks."""
    if broken := violations(job):
        return Problems(c.INVALID_SPEC, tuple(broken))
    if missing := unsupported(job.spec):
        return Problems(c.UNSUPPORTED, tuple(missing))
    if (size := len(job_file(job).encode())) > MAX_JOB_FILE_BYTES:
        sentence = f"spec: has {size:,} bytes as the file that the pods read, and at most {MAX_JOB_FILE_BYTES:,} fit: shorten model.chatTemplate, data.mixture or data.filters.where"
        return Problems(c.INVALID_SPEC, (sentence,))
    return None
