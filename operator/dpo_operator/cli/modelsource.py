"""Finds the model's dimensions and the lengths of the pairs for `dpo plan`."""

import json
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpo_operator.api.models.config import ModelConfigError, shape_of
from dpo_operator.api.models.shape import ModelShape
from dpo_operator.api.reports import DatasetReport
from dpo_operator.api.types import DPOJob

# A config.json has some kilobytes.
MAX_BYTES = 4 << 20
# Seconds for the hub to answer at all; its client's own tries take longer.
ANSWER_SECONDS = 5.0
_ELSE = "name a config.json with --model-config"


class ModelSourceError(Exception):
    """The model's dimensions could not be found. The message says what to do."""


@dataclass(frozen=True)
class Found:
    """The model's dimensions and the source of them. report: of prepare, None where it has not run."""

    shape: ModelShape
    report: DatasetReport | None
    origin: str


def find(job: DPOJob, *, config: Path | None, work: Path | None, claims: Path) -> Found:
    """The model's dimensions. config: a file or a folder that holds one. work: a work folder that was prepared.

    Without config they are those of the work folder, else of the job's model: a folder here, or config.json of a hub, from this
    machine's cache where it is there. Raises ModelSourceError.
    """
    report = None if work is None else _report(work)
    if config is not None:
        path = config / "config.json" if config.is_dir() else config
        return Found(_shape(_read(path), str(path)), report, str(path))
    if work is not None and report is not None:
        if report.model is not None:
            return Found(report.model, report, str(work / "prepared.json"))
        path = work / "model" / "config.json"
        return Found(_shape(_read(path), str(path)), report, str(path))
    path = _config_of("spec.model.name", job.spec.model.name, job.spec.model.revision, claims)
    return Found(_shape(_read(path), str(path)), report, str(path))


def parameters_here(job: DPOJob, claims: Path) -> int | None:
    """Elements of the model's weights; None unless the model is a folder on this machine that tells. Nothing is fetched."""
    name = job.spec.model.name
    if not (name.startswith(("/", ".", "pvc://")) or Path(name).is_dir()):
        return None
    try:
        return find(job, config=None, work=None, claims=claims).shape.parameters
    except ModelSourceError:
        return None


def find_reference(job: DPOJob, *, work: Path | None, claims: Path) -> ModelShape | None:
    """Dimensions of another reference model; None without one. work: see find. Raises ModelSourceError."""
    reference = job.spec.model.reference
    if reference is None:
        return None
    path = None if work is None else work / "reference-model" / "config.json"
    if path is None or not path.is_file():
        path = _config_of("spec.model.reference.name", reference.name, reference.revision, claims)
    return _shape(_read(path), str(path))


def _config_of(field: str, name: str, revision: str | None, claims: Path) -> Path:
    """config.json of a model that a job names."""
    if name.startswith("pvc://"):
        return claims / name.removeprefix("pvc://") / "config.json"
    if "://" in name:
        raise ModelSourceError(f"{field}: {name} is not read here; {_ELSE}")
    if name.startswith(("/", ".")) or Path(name).is_dir():
        return Path(name) / "config.json"
    return _of_hub(field, name, revision)


def _of_hub(field: str, name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise ModelSourceError(
            f"{field}: {name} is on a hub, and the package huggingface-hub is not installed; install it, or {_ELSE}"
        ) from error
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass
    try:
        _check_answers()
        return Path(hf_hub_download(name, "config.json", revision=revision, etag_timeout=ANSWER_SECONDS))
    except Exception as error:  # of many kinds: no network, no such model, a gated one
        words = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelSourceError(f"{field}: config.json of {name} could not be fetched ({words}); {_ELSE}") from error


def _check_answers() -> None:
    """Raise what a request to the hub raises, or TimeoutError: within ANSWER_SECONDS, however many addresses it has."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    ended: queue.Queue[Exception | None] = queue.Queue()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
            ended.put(None)
        except Exception as error:
            ended.put(error)

    # Not joined: a name server may not answer for minutes.
    threading.Thread(target=ask, daemon=True).start()
    try:
        problem = ended.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        problem = TimeoutError(f"{constants.ENDPOINT} gave no answer in {ANSWER_SECONDS:g} s; check the network")
    if problem is not None:
        raise problem


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelSourceError(f"{path}: expected a config.json, found a file of {path.stat().st_size} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelSourceError(
            f"{path}: can't be read: {error.strerror}; {_ELSE}, or a prepared work folder with --work-dir"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelSourceError(f"{path}: is not JSON: {str(error)[:200]}") from error


def _shape(config: Any, where: str) -> ModelShape:
    try:
        return shape_of(config)
    except ModelConfigError as error:
        raise ModelSourceError(f"{where}: {str(error).removeprefix('config.json: ')}") from error


def _report(work: Path) -> DatasetReport:
    made = _read(work / "prepared.json")
    try:
        return DatasetReport.model_validate(made["report"])
    except (ValidationError, KeyError, TypeError) as error:
        raise ModelSourceError(f"{work / 'prepared.json'}: is not what prepare writes; prepare again") from error
