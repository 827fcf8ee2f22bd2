"""Whether a job can be run at all, said in sentences that name the field."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dpo_operator.api import conditions as c
from dpo_operator.api.rules.spec import violations
from dpo_operator.api.rules.support import unsupported
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.config import job_file

MAX_PROBLEMS = 10
# The API server takes ConfigMaps of up to 1 MiB.
MAX_JOB_FILE_BYTES = 1_000_000


@dataclass(frozen=True)
class Problems:
    """Why a job can't be run. reason: InvalidSpec or Unsupported."""

    reason: str
    sentences: tuple[str, ...]

    def describe(self) -> str:
        """All of them, up to a bound."""
        shown = "; ".join(self.sentences[:MAX_PROBLEMS])
        more = len(self.sentences) - MAX_PROBLEMS
        return shown + (f"; and {more} more" if more > 0 else "") + "."


def read_job(raw: Mapping[str, Any]) -> DPOJob | Problems:
    """The job as it's stored, which may be older than the CRD, or what is wrong with it."""
    try:
        return DPOJob.model_validate({k: raw[k] for k in ("apiVersion", "kind", "metadata", "spec") if k in raw})
    except ValidationError as error:
        return Problems(c.INVALID_SPEC, tuple(_sentence(item) for item in error.errors()))


def _sentence(item: Any) -> str:
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in item["loc"]).lstrip(".")
    found = repr(item.get("input"))
    shown = f" (found {found[:80]})" if not isinstance(item.get("input"), dict) else ""
    return f"{path}: {item['msg']}{shown}"


def validate(job: DPOJob) -> Problems | None:
    """Rules over several fields, and what this version can't do yet."""
    if broken := violations(job):
        return Problems(c.INVALID_SPEC, tuple(broken))
    if missing := unsupported(job.spec):
        return Problems(c.UNSUPPORTED, tuple(missing))
    if (size := len(job_file(job).encode())) > MAX_JOB_FILE_BYTES:
        sentence = f"spec: has {size:,} bytes as the file that the pods read, and at most {MAX_JOB_FILE_BYTES:,} fit: shorten data.filters.where or pod.env"
        return Problems(c.INVALID_SPEC, (sentence,))
    return None
