"""Base model and shared string types of the DPOJob."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

# A quantity as Kubernetes writes it: 500Gi, 1.5, 200m.
Quantity = Annotated[
    str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$", max_length=32)
]
# In a list of resources Kubernetes takes whole numbers too: cpu: 2.
ResourceQuantity = Annotated[
    Quantity,
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]
# Key in a Secret or a ConfigMap.
DataKey = Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", min_length=1, max_length=253)]
SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
# DNS names of Kubernetes objects. No "/" fits, so a reference can never name another namespace.
ObjectName = Annotated[str, StringConstraints(pattern=f"^{SUBDOMAIN}$", max_length=253)]
# Key of a label, a taint or an extended resource; Kubernetes takes 253 characters before the "/" and 63 after it.
LabelKey = Annotated[
    str,
    StringConstraints(pattern=f"^({SUBDOMAIN}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?$", max_length=253),
]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
# A hub id, a path, a URL of an object store or a hub, or pvc://claim/path. Control characters and spaces fit nowhere in them.
Source = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x20\x7f-\xa0]+$", min_length=1, max_length=512)]

# Branch, tag or commit of a hub repository.
Revision = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]+$", max_length=128)]
# Split and configuration (subset) of a hub dataset.
Split = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.\[\]:%+-]+$", min_length=1, max_length=128)]
Subset = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$", max_length=128)]


def _without_null(value: Any) -> Any:
    return {k: _without_null(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class ApiModel(BaseModel):
    """Base of every part of the spec: unknown fields are errors, values don't change once read.

    `dpo run` takes what the API server takes: numbers and booleans are strict ("4" isn't 4), and a field that is null
    counts as left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, alias_generator=to_camel)

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, value: Any) -> Any:
        return _without_null(value)


class SecretKeyRef(ApiModel):
    """A key of a Secret in the job's namespace."""

    name: ObjectName = Field(description="Name of the Secret.")
    key: DataKey = Field(default="token", description="Key in the Secret.")
