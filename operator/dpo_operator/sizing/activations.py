"""What autograd keeps of a forward pass, in bytes. docs/planning.md has the table that this adds up."""

import math
from dataclasses import dataclass

from dpo_operator.api.model import AdapterType
from dpo_operator.api.models.shape import ModelShape
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.sizing.trained import adapted, kept_inputs
from dpo_operator.sizing.work import Work

# Rows sampled for entropy and accuracy metrics, and temporary copies of them.
SAMPLED_ROWS, COPIES = 32, 3
# GPT-2's GELU is written out as operations of their own, each of which keeps something.
COMPOSED_GELU = 4
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Passes:
    """Bytes of activations while pairs go through the model.

    kept: saved until the backward pass. layer: what one layer saves, also where it is computed again. head: the output layer's own.
    transient: temporary tensors of one layer. mlp_tensor: one tensor as wide as the MLP. dropped: outputs in one layer of
    matrices with an adapter, which are computed and not kept: of the matrix, of the adapter, and this scaled.
    """

    kept: float
    layer: float
    head: float
    transient: float
    mlp_tensor: float
    dropped: float = 0.0

    @property
    def total(self) -> float:
        """Bytes of all parts together."""
        return self.kept + self.head + self.transient


def with_gradient(shape: ModelShape, spec: DPOJobSpec, work: Work, *, on_gpu: bool) -> Passes:
    """A forward and backward pass."""
    size = BYTES[spec.training.precision]
    layer = _layer(shape, spec, work)
    boundary = size * shape.hidden * work.tokens
    # The embedding's output and the last norm are kept in addition to the layers.
    around = 3 * boundary
    if spec.training.gradient_checkpointing:
        kept = shape.layers * boundary + layer + around
    else:
        kept = shape.layers * layer + around
    head, transient = _head(shape, spec, work.answers, on_gpu=on_gpu), _transient(shape, size) * work.tokens
    dropped = 3 * size * work.tokens * sum(m.active * m.outputs / shape.layers for m in adapted(shape, spec.adapter))
    return Passes(kept, layer, head, transient, size * shape.inner * work.tokens, dropped)


def without_gradient(shape: ModelShape, spec: DPOJobSpec, work: Work, *, on_gpu: bool) -> Passes:
    """A forward pass of an evaluation or of the reference."""
    size = BYTES[spec.training.precision]
    kept = 2 * size * shape.hidden * work.tokens
    head, transient = _head(shape, spec, work.answers, on_gpu=on_gpu), _transient(shape, size) * work.tokens
    return Passes(kept, 0.0, head, transient, size * shape.inner * work.tokens)


def _layer(shape: ModelShape, spec: DPOJobSpec, work: Work) -> float:
    """Bytes that one layer keeps of a micro-batch."""
    size, full = BYTES[spec.training.precision], spec.adapter.type is AdapterType.NONE
    kept, tokens = kept_inputs(shape, spec.adapter), work.tokens
    # A root mean square norm computes in float32 and keeps its input so; a weight that is trained keeps the normalized input.
    normed = shape.norms * shape.hidden + (shape.queries + shape.keys if shape.head_norm else 0)
    if shape.norm == "rms":
        norm = normed * (4 + (size if full else 0)) + 4 * shape.norms
    else:
        norm = normed * size + 8 * shape.norms
    widths = {"attention": shape.hidden, "context": shape.queries, "mlp": shape.hidden, "inner": shape.inner}
    inputs = sum(size * width for reads, width in widths.items() if reads in kept)
    if shape.gated:
        mlp = 3 * size * shape.inner
    else:
        mlp = size * shape.inner * (1 if shape.plain_activation else COMPOSED_GELU)
    # Adapters keep the low-rank product between their two matrices.
    low_rank = sum(size * spec.adapter.rank * m.active / shape.layers for m in adapted(shape, spec.adapter))
    return tokens * (norm + inputs + mlp + low_rank) + _attention(shape, size, work)


def _attention(shape: ModelShape, size: int, work: Work) -> float:
    """Queries, keys, values, outputs and the log-sum-exp of the scores."""
    found = work.tokens * (size * 2 * (shape.queries + shape.keys) + 4 * shape.heads)
    if work.layout == "shared" and work.rejected:
        # With a mask, the rejected answer attends to a copy of the prompt's and its own keys and values for each query head.
        seen = work.prompt + work.rejected
        found += work.pairs * size * (2 * shape.queries * seen + work.rejected * seen)
    if shape.eager:
        length = work.tokens / max(1.0, 2 * work.pairs)
        found += 2 * work.pairs * shape.heads * length**2 * (4 + 2 * size)
    return found


def _transient(shape: ModelShape, size: int) -> float:
    """Bytes for each token while a layer's MLP, its widest part, is at work: of its results, or of their gradients."""
    wide = 3 if shape.gated else 2 + (0 if shape.plain_activation else 2)
    return size * (wide * shape.inner + 2 * shape.hidden)


def chunk_rows(shape: ModelShape, spec: DPOJobSpec) -> float:
    """Scored tokens whose logits exist at a time."""
    most = spec.training.logits_chunk_mi_b << 20
    return max(1, most // (4 * shape.vocabulary)) if most else math.inf


def _head(shape: ModelShape, spec: DPOJobSpec, rows: float, *, on_gpu: bool) -> float:
    """Logits of a chunk of the scored rows, and these rows of hidden states with their gradient."""
    size = BYTES[spec.training.precision]
    chunk = min(rows, chunk_rows(shape, spec))
    # On a CPU the log-softmax is taken in place; lower precision also has the logits and their gradient in its own dtype.
    copies = 4 * (2 if on_gpu else 1) + (2 * size if size < 4 else 0)
    sampled = COPIES * 4 * min(SAMPLED_ROWS, rows)
    return shape.vocabulary * (chunk * copies + sampled) + 2 * size * rows * shape.hidden
