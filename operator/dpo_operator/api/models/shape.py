"""What of a language model decides the memory and the time of its training, read from a Hugging Face config.json.

The prepare phase reports it, the planner and the operator estimate with it; none of them needs torch or the weights.
"""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# Bounds of what is believed; a report comes from a tenant's pod, and arithmetic on absurd numbers helps nobody.
MAX_WIDTH = 1 << 24
MAX_LAYERS = 1 << 14

# Which of a layer's intermediate results a matrix takes as its input.
Reads = Literal["attention", "context", "mlp", "inner", "router"]


class Matrix(BaseModel):
    """A kind of weight matrix, with all that a model has of it.

    count: how many there are in the whole model. active: how many of them each token goes through; fewer than count with
        experts. bias: whether each has one. adaptable: whether an adapter can be put on it by name.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = Field(max_length=128)
    reads: Reads
    inputs: int = Field(ge=1, le=MAX_WIDTH)
    outputs: int = Field(ge=1, le=MAX_WIDTH)
    count: int = Field(ge=0, le=MAX_LAYERS * 4096)
    active: int = Field(ge=0, le=MAX_LAYERS * 4096)
    bias: bool = False
    adaptable: bool = True

    @property
    def parameters(self) -> int:
        """Elements of all of them."""
        return self.count * (self.inputs * self.outputs + (self.outputs if self.bias else 0))


class ModelShape(BaseModel):
    """Dimensions of a decoder-only language model.

    family: model_type of config.json. exact: whether the parameters are counted by a rule made for this family; otherwise the
        layout of Llama is assumed.
    inner: width of a layer's MLP as one token sees it: with experts, of all that it goes through together.
    gated: whether the MLP has a gate. norms: normalizations in a layer. norm: their kind. head_norm: widths (queries, keys) that
        are normalized in attention, as a whole layer has them.
    plain_activation: whether the MLP's activation is one operation for autograd; GPT-2's is several.
    eager: whether attention makes its scores as a tensor.
    tied: whether the output layer is the embedding. small: elements that are in no matrix: norms, positions, biases of the head.
    file_bytes: bytes of an element in the weight files, as far as config.json says.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    family: str = Field(max_length=64)
    exact: bool = True
    layers: int = Field(ge=1, le=MAX_LAYERS)
    hidden: int = Field(ge=1, le=MAX_WIDTH)
    heads: int = Field(ge=1, le=MAX_WIDTH)
    queries: int = Field(ge=1, le=MAX_WIDTH, description="Width of all query heads together.")
    keys: int = Field(ge=1, le=MAX_WIDTH, description="Width of all key heads together; of the values, too.")
    inner: int = Field(ge=1, le=MAX_WIDTH)
    gated: bool = True
    plain_activation: bool = True
    norm: Literal["rms", "layer"] = "rms"
    norms: int = Field(default=2, ge=0, le=8)
    head_norm: bool = False
    eager: bool = False
    vocabulary: int = Field(ge=1, le=MAX_WIDTH)
    tied: bool = False
    small: int = Field(default=0, ge=0, le=MAX_LAYERS * MAX_WIDTH)
    file_bytes: int = Field(default=4, ge=1, le=8)
    matrices: tuple[Matrix, ...] = Field(min_length=1, max_length=24)

    @property
    def embedding(self) -> int:
        """Elements of the embedding, and of the output layer."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Elements of all weights."""
        return sum(m.parameters for m in self.matrices) + self.embedding * (1 if self.tied else 2) + self.small

    @property
    def active(self) -> int:
        """Elements of the matrices that one token is multiplied by, without embedding and output layer."""
        return sum(m.active * m.inputs * m.outputs for m in self.matrices)

    @property
    def largest_matrix(self) -> int:
        """Elements of the largest weight tensor."""
        experts = max((m.count // self.layers for m in self.matrices if not m.adaptable), default=1)
        inside = max(m.inputs * m.outputs * (1 if m.adaptable else max(1, experts)) for m in self.matrices)
        return max(inside, self.embedding)

    @property
    def layer(self) -> int:
        """Elements of one layer, the mean of all."""
        return math.ceil(sum(m.parameters for m in self.matrices) / self.layers)

    @property
    def joins_experts(self) -> bool:
        """Whether experts, which weight files name one by one, are one tensor in memory."""
        return any(not matrix.adaptable and matrix.reads != "router" for matrix in self.matrices)
