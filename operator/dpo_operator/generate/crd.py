"""The CustomResourceDefinition of DPOJob, made from the pydantic types.

pydantic writes JSON Schema of 2020-12; the API server wants a *structural* OpenAPI v3.0 schema, so `structural` inlines
every reference, drops `null` (an optional field is one that is not required), and rewrites what the two spell
differently. It refuses a keyword that it does not know: a constraint must never be lost without a word.
"""

import copy
from collections.abc import Mapping
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.rules import spec as rules
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.statusparts.renames import RENAMED, Rename
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.generate.validations import transitions, validation

Schema = dict[str, Any]

NAME = f"{names.PLURAL}.{names.GROUP}"
SHORT_NAMES = ("dpo",)
# `kubectl get all` shows Jobs, so it shows what makes them.
CATEGORIES = ("all",)

# Name, type, path and description of each column of `kubectl get dpojobs`.
COLUMNS: tuple[tuple[str, str, str, str], ...] = (
    ("State", "string", ".status.state", "What the job is doing."),
    ("Round", "integer", ".status.round", "Round of the phase, with spec.iterative; in wide output (-o wide)."),
    ("Leg", "integer", ".status.leg", "Leg of the training, with spec.sweep; in wide output (-o wide)."),
    ("Step", "integer", ".status.progress.step", "Finished optimizer steps."),
    ("Progress", "string", ".status.progress.percent", "Share of the steps that are finished."),
    ("ETA", "string", ".status.progress.eta", "Time left at the present speed."),
    (
        "Loss",
        "string",
        ".status.progress.loss",
        "Newest training loss; dpo starts at ln 2 = 0.693, other methods elsewhere.",
    ),
    ("Margin", "string", ".status.progress.rewardMargin", "Mean reward of chosen minus rejected answers, nats."),
    (
        "Accuracy",
        "string",
        ".status.progress.accuracy",
        "Share of pairs whose chosen answer wins; says so if the margin is within noise or near 0.",
    ),
    (
        "Healthy",
        "string",
        '.status.conditions[?(@.type=="Healthy")].status',
        "Whether the figures show a run that learns; empty before the first evaluation.",
    ),
    ("Restarts", "integer", ".status.restarts", "Restarts of any kind."),
    ("Age", "date", ".metadata.creationTimestamp", "Time since the DPOJob was made."),
)

# Columns that only -o wide shows.
WIDE = frozenset({"Round", "Leg"})

# Keywords that mean the same in both, or that Kubernetes adds.
_KEPT = frozenset(
    {
        "default",
        "description",
        "enum",
        "format",
        "maxItems",
        "maxLength",
        "maxProperties",
        "minItems",
        "minLength",
        "minProperties",
        "pattern",
        "required",
        "type",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
    }
)
_BOUNDS = {
    "minimum": ("at least", ">="),
    "maximum": ("at most", "<="),
    "exclusiveMinimum": ("greater than", ">"),
    "exclusiveMaximum": ("less than", "<"),
}
# A structural schema may not forbid unknown fields (additionalProperties: false). The API server prunes them, and
# kubectl's strict validation, which is on by default, refuses them with their path.
_REWRITTEN = frozenset(
    {
        "$defs",
        "$ref",
        "additionalProperties",
        "anyOf",
        "const",
        "items",
        "patternProperties",
        "properties",
        "propertyNames",
        "title",
        *_BOUNDS,
    }
)


def crd() -> Schema:
    """The whole CustomResourceDefinition, ready for YAML."""
    version = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _root_schema()},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "description": text}
            | ({"priority": 1} if name in WIDE else {})
            for name, kind, path, text in COLUMNS
        ],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": NAME},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.KIND.lower(),
                "shortNames": list(SHORT_NAMES),
                "categories": list(CATEGORIES),
            },
            "scope": "Namespaced",
            "versions": [version],
        },
    }


def spec_schema() -> Schema:
    """Structural schema of `spec`, with the rules over several fields."""
    schema = structural(DPOJobSpec.model_json_schema(by_alias=True))
    schema["x-kubernetes-validations"] = [
        *(validation(rule.cel, rule.message, f".{rule.field}") for rule in rules.SPEC_RULES),
        *transitions(schema),
    ]
    return schema


def status_schema() -> Schema:
    """Structural schema of `status`, which only the operator writes; with the earlier names of its fields."""
    schema = _without_defaults(structural(DPOJobStatus.model_json_schema(by_alias=True)))
    for rename in RENAMED:
        _keep_earlier_name(schema, rename)
    return schema


def _keep_earlier_name(schema: Schema, rename: Rename) -> None:
    """Add the earlier name of a field, which the API server would otherwise drop from stored objects.

    Neither name is required: a stored status, which is validated whenever its DPOJob is changed, has either.
    """
    node = schema
    if rename.part:
        node = schema["properties"][rename.part.removesuffix("[]")]
        node = node["items"] if rename.part.endswith("[]") else node
    now = node["properties"][rename.now]
    earlier = {**copy.deepcopy(now), "description": f"Deprecated: read when {rename.now} is absent."}
    if rename.values:
        earlier["enum"] = list(rename.values)
    node["properties"][rename.earlier] = earlier
    if rename.now in node.get("required", ()):
        node["required"] = [name for name in node["required"] if name != rename.now]


def structural(schema: Schema) -> Schema:
    """Turn a JSON Schema of pydantic into a structural OpenAPI v3.0 schema.

    Raises ValueError for a keyword that has no translation here.
    """
    return _node(schema, schema.get("$defs", {}), "")


def _root_schema() -> Schema:
    return {
        "type": "object",
        "description": "DPOJob trains a language model on preference data, on one or more GPU nodes.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": spec_schema(),
            "status": status_schema(),
        },
        "x-kubernetes-validations": [
            {
                "rule": f"self.metadata.name.size() <= {names.MAX_JOB_NAME} && "
                f"self.metadata.name.matches({cel_string(rules.NAME_PATTERN)})",
                "message": rules.NAME_MESSAGE.removeprefix("metadata.name: "),
                "fieldPath": ".metadata.name",
            }
        ],
    }


def _node(schema: Mapping[str, Any], defs: Mapping[str, Any], path: str) -> Schema:
    schema = _merged(schema, defs, path)
    if unknown := set(schema) - _KEPT - _REWRITTEN:
        raise ValueError(f"{path or 'schema'}: no translation for {', '.join(sorted(unknown))}")
    node = {key: value for key, value in schema.items() if key in _KEPT}
    if "const" in schema:
        node["enum"] = [schema["const"]]
    node.update(_bounds(schema))
    if node.get("type") == "integer":
        node["format"] = "int32" if node.get("maximum", 2**63) < 2**31 else "int64"
    if node.get("default", ...) is None:
        del node["default"]
    if node.get("x-kubernetes-int-or-string"):
        node = _int_or_string(node)
    if node.get("type") == "array":
        node["items"] = _node(schema["items"], defs, f"{path}[]")
        node.setdefault("x-kubernetes-list-type", "atomic")
    if node.get("type") == "object":
        node.update(_object(schema, defs, path))
    return node


def _without_defaults(schema: Schema) -> Schema:
    """A status says what was observed: the API server must not add what nobody wrote."""
    node = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in node:
        node["properties"] = {key: _without_defaults(value) for key, value in node["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in node:
            node[key] = _without_defaults(node[key])
    return node


def _merged(schema: Mapping[str, Any], defs: Mapping[str, Any], path: str) -> Schema:
    """Replace a reference by what it names and an optional value by the value; what stands beside it wins."""
    merged = dict(schema)
    while True:
        if reference := merged.pop("$ref", None):
            merged = {**defs[reference.removeprefix("#/$defs/")], **merged}
        elif choices := [c for c in merged.pop("anyOf", []) if c.get("type") != "null"]:
            if len(choices) > 1:
                raise ValueError(f"{path}: a choice of types can't be structural")
            merged = {**choices[0], **merged}
        else:
            return merged


def _object(schema: Mapping[str, Any], defs: Mapping[str, Any], path: str) -> Schema:
    """The parts of a node that only objects and maps have."""
    if "properties" in schema:
        properties = {key: _node(value, defs, f"{path}.{key}") for key, value in schema["properties"].items()}
        # The parent's default is {}, and the API server fills in the children's: each default stands once.
        return {"properties": properties, **({"default": {}} if schema.get("default") is not None else {})}
    keys = dict(schema.get("propertyNames", {}))
    values = schema.get("additionalProperties", True)
    for pattern, value in schema.get("patternProperties", {}).items():
        keys["pattern"], values = pattern, value
    if not isinstance(values, dict):
        raise ValueError(f"{path}: an object needs properties or one type of values")
    return {"additionalProperties": _node(values, defs, f"{path}.*"), **_key_rule(keys)}


def _key_rule(keys: Mapping[str, Any]) -> Schema:
    """OpenAPI 3.0 can't constrain the keys of a map, CEL can."""
    tests = [f"k.size() <= {keys['maxLength']}"] if "maxLength" in keys else []
    tests += [f"k.matches({cel_string(keys['pattern'])})"] if "pattern" in keys else []
    if not tests:
        return {}
    rule = f"self.all(k, {' && '.join(tests)})"
    return {"x-kubernetes-validations": [{"rule": rule, "message": f"keys must match {keys.get('pattern', '')}"}]}


def _bounds(schema: Mapping[str, Any]) -> Schema:
    """Bounds of a number.

    The API server compares a whole number, such as a default of 0, with the bound cut to a whole number too: 0 would
    break "less than 0.5". Where that matters the bound is a CEL rule.
    """
    bounds: Schema = {}
    tests = []
    for keyword, (words, sign) in _BOUNDS.items():
        if keyword not in schema:
            continue
        limit = schema[keyword]
        if not float(limit).is_integer():
            tests.append({"rule": f"self {sign} {limit}", "message": f"must be {words} {limit}"})
        elif keyword.startswith("exclusive"):
            # OpenAPI 3.0 has the flag of JSON Schema's draft 4, not a second bound.
            bounds |= {keyword.removeprefix("exclusive").lower(): limit, keyword: True}
        else:
            bounds[keyword] = limit
    return bounds | ({"x-kubernetes-validations": tests} if tests else {})


def _int_or_string(node: Schema) -> Schema:
    """A quantity, which may be written as a whole number; the pattern holds for strings, the minimum for numbers."""
    rest = {key: value for key, value in node.items() if key != "type"}
    return {"anyOf": [{"type": "integer"}, {"type": "string"}], "minimum": 0, **rest}


def cel_string(text: str) -> str:
    """A CEL literal of a text that holds no single quote."""
    if "'" in text:
        raise ValueError(f"can't quote {text!r} for CEL")
    return "r'" + text + "'"
