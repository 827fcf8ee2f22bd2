"""Validations of the CRD in CEL, and among them what a change of a DPOJob may not do."""

from typing import Any

from dpo_operator.api.rules import spec as rules

Schema = dict[str, Any]

IMMUTABLE_MESSAGE = "can't change once the DPOJob exists; make another DPOJob"
ROUNDS_MESSAGE = "can only grow once the DPOJob exists: rounds that were trained stay"
GROWING_MESSAGE = "can only grow once the DPOJob exists: a volume can't shrink"


def validation(rule: str, message: str, path: str) -> Schema:
    """One of x-kubernetes-validations. path: of the field that the message is about, such as .nodes."""
    return {"rule": rule, "message": message, "fieldPath": path}


def transitions(schema: Schema) -> list[Schema]:
    """What may not change. schema: of the spec."""
    return [
        *(_immutable(field, present=_is_always_there(schema, field)) for field in rules.IMMUTABLE_FIELDS),
        _growing(rules.VOLUME_SIZE),
        *_rounds(schema),
    ]


def _is_always_there(schema: Schema, field: str) -> bool:
    """Whether each part of a dotted field is required or has a default."""
    for part in field.split("."):
        if part not in schema.get("required", ()) and "default" not in schema["properties"][part]:
            return False
        schema = schema["properties"][part]
    return True


def _immutable(field: str, *, present: bool) -> Schema:
    """A transition rule; a field that is added or taken away has changed too.

    present: it can't be. Every look at a field costs the API server at each write of the status, too.
    """
    same = f"self.{field} == oldSelf.{field}"
    if not present:
        same = f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || {same})"
    return validation(same, IMMUTABLE_MESSAGE, f".{field}")


def _growing(field: str) -> Schema:
    """A transition rule: a quantity may become larger."""
    rule = f"quantity(self.{field}).compareTo(quantity(oldSelf.{field})) >= 0"
    return validation(rule, GROWING_MESSAGE, f".{field}")


def _rounds(schema: Schema) -> list[Schema]:
    """Transition rules of a part that may be absent: neither added nor taken away; the rounds may grow, all else stays."""
    part = schema["properties"]["iterative"]
    same = []
    for field in rules.IMMUTABLE_OF_ROUNDS:
        now, before = f"self.iterative.{field}", f"oldSelf.iterative.{field}"
        always = _is_always_there(part, field)
        same.append(
            f"{now} == {before}" if always else f"has({now}) == has({before}) && (!has({now}) || {now} == {before})"
        )
    both = "has(self.iterative) == has(oldSelf.iterative)"
    grows = f"!has(self.iterative) || !has(oldSelf.iterative) || self.{rules.ROUNDS} >= oldSelf.{rules.ROUNDS}"
    return [
        validation(f"{both} && (!has(self.iterative) || ({' && '.join(same)}))", IMMUTABLE_MESSAGE, ".iterative"),
        validation(grows, ROUNDS_MESSAGE, f".{rules.ROUNDS}"),
    ]
