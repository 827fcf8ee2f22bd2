"""Rules about the data: sources that prepare can read, formats that the loss can use, conditions that mean something."""

import re
from collections.abc import Callable

from dpo_operator.api.base import SUBDOMAIN
from dpo_operator.api.data import Condition, Dataset
from dpo_operator.api.method import MethodName
from dpo_operator.api.rules.rule import Rule
from dpo_operator.api.types import DPOJobSpec

OBJECT_STORE = "^(s3|gs|az|abfs)://[^/]+(/.*)?$"
_REPOSITORY = "[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9._-]+)?"
HUB_MODEL = f"^hf://{_REPOSITORY}$"
HUB_DATASET = f"^hf://datasets/{_REPOSITORY}(/.*)?$"
# What hf:// URLs begin with that name no model.
NO_MODEL = "^hf://(datasets|spaces|models)/"
ON_CLAIM = f"^pvc://{SUBDOMAIN}(/.*)?$"
# A name that no claim can have, and what the library that reads object stores takes for a chain of file systems.
ODD_URL = "^pvc://[^/]{254}|::"
PARENT_FOLDER = "/[.][.](/|$)"
NUMBER = "[-+]?([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][-+]?[0-9]{1,3})?"

URL_MESSAGE = (
    "a URL must be pvc://claim/path with a claim of the job's namespace and no '..', s3://bucket/path, gs://bucket/path, az://container/path, "
    "hf://org/name for a model or hf://datasets/org/name for data, without '::'"
)


EVALUATES = "has(self.data.eval) || self.data.evalFraction > 0.0"


def evaluates(spec: DPOJobSpec) -> bool:
    """Whether there is data to evaluate on; EVALUATES in CEL."""
    return spec.data.eval is not None or spec.data.eval_fraction > 0


def _readable_cel(source: str, on_hub: str) -> str:
    stores = f"{source}.matches('{OBJECT_STORE}')"
    others = f"(({source}.matches('{ON_CLAIM}') || {on_hub}) && !{source}.matches('{PARENT_FOLDER}'))"
    return f"(!{source}.contains('://') || (!{source}.matches('{ODD_URL}') && ({stores} || {others})))"


def model_cel(source: str) -> str:
    """CEL of readable_model. source: expression of it."""
    return _readable_cel(source, f"({source}.matches('{HUB_MODEL}') && !{source}.matches('{NO_MODEL}'))")


def data_cel(source: str) -> str:
    """CEL of readable_data. source: expression of it."""
    return _readable_cel(source, f"{source}.matches('{HUB_DATASET}')")


def _readable(source: str, on_hub: object) -> bool:
    """Whether a source is no URL, or one that prepare can read. on_hub: true for one of a hub."""
    inside = (re.search(ON_CLAIM, source) or on_hub) and not re.search(PARENT_FOLDER, source)
    known = re.search(OBJECT_STORE, source) or inside
    return "://" not in source or bool(known and not re.search(ODD_URL, source))


def readable_model(source: str) -> bool:
    """Whether the source of a model is no URL, or one that prepare can read."""
    return _readable(source, re.search(HUB_MODEL, source) and not re.search(NO_MODEL, source))


def readable_data(source: str) -> bool:
    """Whether the source of data is no URL, or one that prepare can read."""
    return _readable(source, re.search(HUB_DATASET, source))


def _fits_cel(method: str, row_format: str) -> str:
    return f"({method} == 'kto' || {row_format} != 'unpaired')"


def _fits(spec: DPOJobSpec, data: Dataset) -> bool:
    return spec.method.name is MethodName.KTO or data.format != "unpaired"


def _of_each_dataset(
    key: str, cel: Callable[[str], str], check: Callable[[DPOJobSpec, Dataset], bool], message: str
) -> tuple[Rule, ...]:
    """The same rule for train, for each dataset of the mixture, and for eval where it is given. cel: of a dataset's path."""
    return (
        Rule(f"data.train.{key}", cel("self.data.train"), lambda s: check(s, s.data.train), message),
        Rule(
            "data.mixture",
            f"self.data.mixture.all(d, {cel('d')})",
            lambda s: all(check(s, d) for d in s.data.mixture),
            f"{key}: {message}",
        ),
        Rule(
            f"data.eval.{key}",
            f"!has(self.data.eval) || {cel('self.data.eval')}",
            lambda s: s.data.eval is None or check(s, s.data.eval),
            message,
        ),
    )


def _meaningful(condition: Condition) -> bool:
    match condition.operator:
        case "In" | "NotIn":
            return len(condition.values) > 0
        case "AtLeast" | "AtMost":
            return len(condition.values) == 1 and re.fullmatch(NUMBER, condition.values[0]) is not None
        case _:
            return not condition.values


DATA_RULES: tuple[Rule, ...] = (
    Rule("model.name", model_cel("self.model.name"), lambda s: readable_model(s.model.name), URL_MESSAGE),
    Rule(
        "model.adapter.name",
        f"!has(self.model.adapter) || {model_cel('self.model.adapter.name')}",
        lambda s: s.model.adapter is None or readable_model(s.model.adapter.name),
        URL_MESSAGE,
    ),
    Rule(
        "model.reference.name",
        f"!has(self.model.reference) || {model_cel('self.model.reference.name')}",
        lambda s: s.model.reference is None or readable_model(s.model.reference.name),
        URL_MESSAGE,
    ),
    *_of_each_dataset(
        "source", lambda at: data_cel(f"{at}.source"), lambda _, data: readable_data(data.source), URL_MESSAGE
    ),
    *_of_each_dataset(
        "format",
        lambda at: _fits_cel("self.method.name", f"{at}.format"),
        _fits,
        "unpaired needs method.name kto; the other methods compare two answers to a prompt",
    ),
    Rule(
        "data.filters.where",
        "self.data.filters.where.all(c, c.operator in ['In', 'NotIn'] ? c.values.size() > 0 : "
        "c.operator in ['AtLeast', 'AtMost'] ? "
        f"c.values.size() == 1 && c.values[0].matches('^{NUMBER}$') : c.values.size() == 0)",
        lambda s: all(_meaningful(condition) for condition in s.data.filters.where),
        "In and NotIn need at least one of values, AtLeast and AtMost exactly one that is a number, Exists and DoesNotExist none",
    ),
    Rule(
        "data.maxPromptLength",
        "!has(self.data.maxPromptLength) || self.data.maxPromptLength < self.data.maxLength",
        lambda s: s.data.max_prompt_length is None or s.data.max_prompt_length < s.data.max_length,
        "must be smaller than data.maxLength, so that the answers keep some tokens",
    ),
    Rule(
        "data.evalFraction",
        "!has(self.data.eval) || self.data.evalFraction == 0.0",
        lambda s: s.data.eval is None or s.data.eval_fraction == 0,
        "must be 0 or left out when data.eval is given",
    ),
    Rule(
        "data.eval.weight",
        "!has(self.data.eval) || self.data.eval.weight == 1.0",
        lambda s: s.data.eval is None or s.data.eval.weight == 1,
        "must be 1 or left out: every evaluation pair is used once",
    ),
)
