"""Reads a DPOJob file and lists all problems in it."""

import copy
import itertools
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dpo_operator.api import names
from dpo_operator.api.allowed.allow import DEFAULT_ALLOW, Allow, refused_variables
from dpo_operator.api.rules import spec as rules
from dpo_operator.api.rules import support
from dpo_operator.api.text import sentences
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


def read(path: Path, allow: Allow = DEFAULT_ALLOW) -> DPOJob:
    """Parse and check a DPOJob file. allow: which variables pod.env may set.

    Local paths that begin with ./ or ../ are taken from the file's own folder, so that an example works from anywhere.
    Raises JobFileError.
    """
    document = _document(path)
    _resolve_paths(document, path.resolve().parent)
    try:
        job = _job(document)
    except ValidationError as error:
        raise JobFileError("\n".join([*sentences(error), *_rule_problems(document)])) from error
    if problems := rules.violations(job) + support.unsupported(job.spec) + refused_variables(job.spec, allow):
        raise JobFileError("\n".join(problems))
    return job


def _job(document: dict[str, Any]) -> DPOJob:
    """The document as the types have it. Only the API's names count: label_smoothing is unknown."""
    return DPOJob.model_validate(document, by_alias=True, by_name=False)


def _rule_problems(document: dict[str, Any]) -> list[str]:
    """Problems from rules over several fields, with invalid values removed, so that a user sees all problems at once.

    Rules that name an invalid value are left out: they would check its default.
    """
    rest, wrong = copy.deepcopy(document), set[str]()
    for _ in range(_ROUNDS):
        try:
            job = _job(rest)
        except ValidationError as error:
            # The last item of a list first: the earlier ones keep their places.
            for problem in sorted(error.errors(), key=lambda p: [str(key).zfill(9) for key in p["loc"]], reverse=True):
                wrong.add(_in_rules(problem["loc"]))
                _repair(rest, problem["loc"], problem["type"])
        else:
            broken = [
                f"spec.{rule.field}: {rule.message}"
                for rule in rules.SPEC_RULES
                if not rule.check(job.spec) and not any(re.search(rf"\b{re.escape(p)}\b", rule.cel) for p in wrong)
            ]
            return broken + support.unsupported(job.spec)
    return ["spec: rules over several fields were not checked, because required fields are missing or wrong"]


# Most repairs that a document needs: three nested required fields (data, train, source), two rounds each, and one check.
_ROUNDS = 7


def _in_rules(path: tuple[int | str, ...]) -> str:
    """The path as rules write it: spec is self, and a list's index is left out because rules check all items."""
    inside = itertools.takewhile(lambda key: isinstance(key, str), path[1:])
    return ".".join(["self" if path[0] == "spec" else str(path[0]), *map(str, inside)])


def _repair(document: Any, path: tuple[Any, ...], problem: str) -> None:
    """Remove an invalid value, or fill in a missing required one, in place."""
    *parents, last = path[:-1] if path[-1] == "[key]" else path
    try:
        for key in parents:
            document = document[key]
        if problem in ("missing", "model_type"):
            document[last] = "unknown" if problem == "missing" else {}
        else:
            del document[last]
    except (KeyError, IndexError, TypeError):
        return  # pydantic's path is not the document's, as for a key that is no text


def _document(path: Path) -> dict[str, Any]:
    """The one DPOJob of a YAML file; other documents, such as a Secret, are ignored."""
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
    """Make ./ and ../ paths of models, datasets and another run's folder absolute, in place."""
    spec = document.get("spec")
    if not isinstance(spec, dict):
        return
    data = spec.get("data")
    data = data if isinstance(data, dict) else {}
    mixture = data.get("mixture")
    datasets = [data.get("train"), data.get("eval"), *(mixture if isinstance(mixture, list) else [])]
    model = spec.get("model")
    models = [model, *(model.get(key) for key in ("adapter", "reference"))] if isinstance(model, dict) else []
    sources = [*datasets, spec.get("resumeFrom")]
    for part, key in (*((part, "name") for part in models), *((source, "source") for source in sources)):
        if isinstance(part, dict) and isinstance(part.get(key), str) and part[key].startswith(("./", "../")):
            part[key] = str((folder / part[key]).resolve())
