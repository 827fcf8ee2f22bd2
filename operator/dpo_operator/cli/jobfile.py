"""Read a DPOJob file and say clearly what is wrong with it."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dpo_operator.api import names, rules, support
from dpo_operator.api.types import DPOJob


class _Loader(yaml.SafeLoader):
    """YAML as kubectl reads it: 5e-7 is a number and 2026-01-01 a text; in YAML 1.1 it is the other way round."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class JobFileError(Exception):
    """The file can't be used; the message has one line for each problem."""


def read(path: Path) -> DPOJob:
    """Parse and check a DPOJob file.

    Local paths that begin with ./ or ../ are taken from the file's own folder, so that an example works from anywhere.
    Raises JobFileError.
    """
    document = _document(path)
    _resolve_paths(document, path.resolve().parent)
    try:
        job = DPOJob.model_validate(document)
    except ValidationError as error:
        raise JobFileError("\n".join(_sentences(error))) from error
    problems = rules.violations(job) + support.unsupported(job.spec)
    if problems:
        raise JobFileError("\n".join(problems))
    return job


def _document(path: Path) -> dict[str, Any]:
    """The one DPOJob of a YAML file; other documents, such as a Secret, are passed over."""
    try:
        documents = list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=_Loader))
    except OSError as error:
        raise JobFileError(f"{path}: can't be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobFileError(f"{path}: is not YAML: {error}") from error
    jobs = [d for d in documents if isinstance(d, dict) and d.get("kind") == names.KIND]
    if len(jobs) != 1:
        raise JobFileError(f"{path}: expected one document of kind {names.KIND}, found {len(jobs)}")
    return jobs[0]


def _resolve_paths(document: dict[str, Any], folder: Path) -> None:
    """Make ./ and ../ paths of model and datasets absolute, in place."""
    spec = document.get("spec")
    if not isinstance(spec, dict):
        return
    data = spec.get("data")
    data = data if isinstance(data, dict) else {}
    for part, key in ((spec.get("model"), "name"), (data.get("train"), "source"), (data.get("eval"), "source")):
        if isinstance(part, dict) and isinstance(part.get(key), str) and part[key].startswith(("./", "../")):
            part[key] = str((folder / part[key]).resolve())


def _sentences(error: ValidationError) -> Iterable[str]:
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        found = "" if problem["type"] in ("missing", "extra_forbidden") else f" (found {problem['input']!r})"
        yield f"{where}: {problem['msg']}{found}"
