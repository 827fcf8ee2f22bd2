"""The grid of a sweep: every combination of some values is a leg, a training of its own on the same prepared data."""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt

from dpo_operator.api.base import ApiModel
from dpo_operator.api.diagnosis import Code
from dpo_operator.api.method import MethodName

if TYPE_CHECKING:
    from dpo_operator.api.types import DPOJobSpec

MAX_LEGS = 32

Value = float | int | MethodName
# Measures by which legs of different beta can be compared; a margin grows with beta, so it is none of them.
Measure = Literal["eval_reward_accuracy", "eval_loss"]


class Sweep(ApiModel):
    """Lists of values. Legs are numbered from 1; the last list varies fastest, in the order of the fields."""

    method: list[MethodName] = Field(default=[], max_length=MAX_LEGS, description="Values of method.name.")
    adapter_rank: list[Annotated[StrictInt, Field(ge=1, le=1024)]] = Field(
        default=[],
        max_length=MAX_LEGS,
        description="Values of adapter.rank. adapter.alpha stays, so the factor alpha/rank differs.",
    )
    beta: list[Annotated[StrictFloat, Field(gt=0, le=100)]] = Field(
        default=[], max_length=MAX_LEGS, description="Values of method.beta."
    )
    learning_rate: list[Annotated[StrictFloat, Field(gt=0, le=1)]] = Field(
        default=[], max_length=MAX_LEGS, description="Values of training.learningRate."
    )
    seed: list[Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]] = Field(
        default=[],
        max_length=MAX_LEGS,
        description="Values of training.seed in the legs. The data are prepared once, with training.seed itself.",
    )
    select: Measure = Field(
        default="eval_reward_accuracy",
        description="Which leg is exported: the one with the best value of this in the evaluation of the checkpoint that it would export. Equal "
        "ones are decided by less drift from the reference. eval_loss: only where all legs have one method and one beta, since losses of others "
        "can't be compared.",
    )
    stop_unhealthy: StrictBool = Field(
        default=True,
        description="End a leg when a finding about its learning is Unhealthy; the sweep continues with the next. Such a leg is not exported.",
    )

    @property
    def lists(self) -> dict[str, Sequence[Value]]:
        """The lists that have values, by their names in YAML, in the order of the grid."""
        every: dict[str, Sequence[Value]] = {
            "method": self.method, "adapterRank": self.adapter_rank, "beta": self.beta, "learningRate": self.learning_rate, "seed": self.seed
        }  # fmt: skip
        return {name: values for name, values in every.items() if values}

    @property
    def legs(self) -> int:
        """How many legs there are."""
        return math.prod(len(values) for values in self.lists.values())

    def point(self, number: int) -> dict[str, Value]:
        """The values of a leg by their names in YAML. number: from 1 to legs. Raises IndexError for another one."""
        if not 1 <= number <= self.legs:
            raise IndexError(f"leg {number} of {self.legs}")
        values = next(itertools.islice(itertools.product(*self.lists.values()), number - 1, None))
        return dict(zip(self.lists, values, strict=True))

    def label(self, number: int) -> str:
        """A leg's values for people, such as "beta 0.1, learningRate 5e-07". Raises IndexError as point does."""
        return ", ".join(f"{name} {_shown(value)}" for name, value in self.point(number).items())


def legs_of(spec: "DPOJobSpec") -> "list[DPOJobSpec]":
    """The specs of all legs; of a job without a sweep its own."""
    numbers = range(1, spec.sweep.legs + 1) if spec.sweep is not None else (0,)
    return [leg_spec(spec, number) for number in numbers]


def largest_leg(spec: "DPOJobSpec") -> "DPOJobSpec":
    """The job with the adapter of the leg that needs most memory; all else that legs differ in changes neither memory nor speed."""
    rank = max(spec.sweep.adapter_rank if spec.sweep is not None else [], default=spec.adapter.rank)
    return spec.model_copy(update={"adapter": spec.adapter.model_copy(update={"rank": rank})})


def _shown(value: Value) -> str:
    return value.value if isinstance(value, MethodName) else f"{value:g}" if isinstance(value, float) else str(value)


def leg_spec(spec: "DPOJobSpec", number: int) -> "DPOJobSpec":
    """The spec of one leg: the job's, with the leg's values and without the sweep. number: from 1; 0 is the job itself.

    Raises IndexError for a leg that there is not, or in a job without a sweep.
    """
    if not number:
        return spec
    sweep = spec.sweep
    if sweep is None:
        raise IndexError(f"leg {number} of a job without spec.sweep")
    point = sweep.point(number)
    method = {key: point[name] for name, key in (("method", "name"), ("beta", "beta")) if name in point}
    training = {
        key: point[name] for name, key in (("learningRate", "learning_rate"), ("seed", "seed")) if name in point
    }
    adapter = {"rank": point["adapterRank"]} if "adapterRank" in point else {}
    stop = {"stop_on": tuple(Code)} if sweep.stop_unhealthy else {}
    return spec.model_copy(
        update={
            "sweep": None,
            "method": spec.method.model_copy(update=method),
            "training": spec.training.model_copy(update=training),
            "adapter": spec.adapter.model_copy(update=adapter),
            "diagnosis": spec.diagnosis.model_copy(update=stop),
        }
    )
