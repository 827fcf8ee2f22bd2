"""Output head: log-probs of the scored tokens, without the logits of all tokens in memory.

A large vocabulary makes logits the largest tensor of a forward pass. Here they exist for a chunk of rows at a time; with more than
one chunk each is computed again in the backward pass, as in activation checkpointing. The layer is called once as a module whatever
the number of chunks, so that ZeRO-3 gathers its weight once in the forward pass and once in the backward pass, on every rank alike.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)

# Rows of a forward pass whose whole distribution is evaluated, for entropy and token accuracy. They are spread evenly. More rows
# would cost another pass over the vocabulary; that is made before the first update alone.
_SAMPLED_ROWS = 32
# Columns of one product on a CPU: with all of a large vocabulary at once MKL packs the weight badly and takes half as long again.
_CPU_COLUMNS = 1024
# Rows whose log-softmax is taken at once on a CPU, so that the second copy of them stays in its cache.
_CPU_ROWS = 8


class OutputHead:
    """Log-probs of given tokens from a causal language model's hidden states.

    causal_lm: a Hugging Face model. prefix: name of its transformer.
    chunk_bytes: largest logits that exist at a time, as float32; at least one row. None: all rows at once.
    """

    def __init__(self, causal_lm: nn.Module, prefix: str) -> None:
        self.chunk_bytes: int | None = None
        self._model, self._prefix = causal_lm, prefix
        self._name = _plain_layer(causal_lm, prefix)
        self._layer: Any = causal_lm._modules[self._name] if self._name is not None else None
        self._targets: Tensor | None = None
        self._every = 1
        self._after: Callable[[Tensor], Tensor] | None = None
        self._sampled: Tensor | None = None
        self._is_known = False
        if self._layer is not None:
            # On the instance, so that hooks around the module, which gather its weight, stay in place.
            vars(self._layer)["forward"] = self._layer_forward

    def __call__(self, output: Any, rows: Tensor, targets: Tensor, every: int) -> tuple[Tensor, Tensor]:
        """Log-probs of the targets, float32 [rows], nats, and predictions of rows 0, every, 2*every and so on, see token_logps.

        output: the transformer's, a Hugging Face ModelOutput. rows: [rows, hidden], its hidden states at some positions.
        targets: int64 [rows].
        The model's own forward pass continues from the rows. Calling the output layer alone would leave out what many models do
        around it (Gemma caps logits, Cohere and Granite scale them).
        """
        transformer = self._model._modules[self._prefix]
        given = _FixedOutput(replace(output, last_hidden_state=rows.unsqueeze(0)), transformer)
        if self._name is not None and not self._is_known:
            self._detect_logit_processing(replace(output, last_hidden_state=rows.new_zeros(1, 1, rows.shape[1])))
        if self._name is None:
            with _replaced(self._model, {self._prefix: given}):
                logits = self._model(input_ids=targets.unsqueeze(0), use_cache=False).logits.squeeze(0)
            return token_logps(logits, targets, every)
        recorder = _Recorder(self._layer)
        self._targets, self._every = targets, every
        try:
            with _replaced(self._model, {self._prefix: given, self._name: recorder}):
                self._model(input_ids=targets.unsqueeze(0), use_cache=False)
        finally:
            self._targets = None
        assert recorder.output is not None
        assert self._sampled is not None
        return recorder.output, self._sampled

    def _layer_forward(self, hidden: Tensor) -> Tensor:
        """The output layer's forward pass: log-probs while there are targets, else the original one."""
        layer = self._layer
        if self._targets is None:
            return F.linear(hidden, layer.weight, layer.bias)
        logps: Tensor
        logps, self._sampled = _TokenLogps.apply(
            hidden.flatten(0, -2),
            layer.weight,
            layer.bias,
            self._targets,
            layer,
            self._after,
            self.chunk_bytes,
            self._every,
        )
        return logps

    @torch.no_grad()
    def _detect_logit_processing(self, output: Any) -> None:
        """Detect how the model processes its logits. If that can't be isolated, the output layer stays as it is, without chunks."""
        after = partial(_processed_logits, self._model, self._prefix, str(self._name), output)
        hidden = output.last_hidden_state
        logits = torch.linspace(-60, 60, self._layer.out_features, device=hidden.device, dtype=hidden.dtype).unsqueeze(
            0
        )
        try:
            made = after(logits.clone())
            after(logits.new_zeros(1, 1))  # the shape that _Recorder returns
        except (TypeError, ValueError, AttributeError, RuntimeError, LookupError) as error:
            log.info("the output head is not computed in chunks: %s", error)
            self._name = None
            return
        self._after = None if torch.equal(made.to(logits), logits) else after
        self._is_known = True


def _plain_layer(causal_lm: Any, prefix: str) -> str | None:
    """Name of the output layer, if its weights are all that the model has in addition to its transformer, and it is linear, without an adapter."""
    if any(True for _ in causal_lm.parameters(recurse=False)):
        return None
    layer = causal_lm.get_output_embeddings()
    parts = {
        name: part
        for name, part in causal_lm._modules.items()
        if name != prefix and any(True for _ in part.parameters())
    }
    [name, found] = next(iter(parts.items())) if len(parts) == 1 else ("", None)
    return name if found is layer and type(layer) is nn.Linear else None


def _processed_logits(causal_lm: Any, prefix: str, name: str, output: Any, logits: Tensor) -> Tensor:
    """Logits after the model's own processing, [rows, vocabulary]: its code runs with everything before the logits replaced.

    output: the transformer's; the model may read other fields of it.
    """
    transformer = causal_lm._modules[prefix]
    transformer = transformer.transformer if isinstance(transformer, _FixedOutput) else transformer
    with _replaced(causal_lm, {prefix: _FixedOutput(output, transformer), name: _Constant(logits.unsqueeze(0))}):
        # Not as a module: hooks are for weights, and there are none here.
        ids = torch.zeros(1, len(logits), dtype=torch.int64, device=logits.device)
        made: Tensor = type(causal_lm).forward(causal_lm, input_ids=ids, use_cache=False).logits
    return made.squeeze(0)


class _TokenLogps(torch.autograd.Function):
    """Chunks of rows through a linear layer and log-softmax, and back."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        layer: nn.Linear,
        after: Callable[[Tensor], Tensor] | None,
        chunk_bytes: int | None,
        every: int,
    ) -> tuple[Tensor, Tensor]:
        rows = len(hidden) if chunk_bytes is None else max(1, chunk_bytes // (4 * len(weight)))
        logps = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        sampled = []
        kept = None
        for start in range(0, len(hidden), rows):
            part = slice(start, min(start + rows, len(hidden)))
            logits = _product(hidden[part], weight, bias)
            values = _log_softmax_(logits if after is None else after(logits.clone()))
            logps[part] = values.gather(1, targets[part, None]).squeeze(1)
            sample = slice(-start % every, None, every)
            sampled.append(_predictions(values[sample], targets[part][sample]))
            # A single chunk is kept for the backward pass. Several are not: each would need its memory.
            kept = (logits if after is not None else values) if rows >= len(hidden) else None
        predictions = torch.cat(sampled, dim=1)
        ctx.mark_non_differentiable(predictions)
        ctx.save_for_backward(hidden, targets)
        ctx.layer, ctx.after, ctx.rows, ctx.kept = layer, after, rows, kept
        return logps, predictions

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        hidden, targets = ctx.saved_tensors
        # Read again: under ZeRO-3 the weight was partitioned in between, and is gathered again by now.
        weight, bias = ctx.layer.weight, ctx.layer.bias
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_weight, of_bias = None, None
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, min(start + ctx.rows, len(hidden)))
            logits, ctx.kept = ctx.kept, None
            if logits is None:
                logits = _product(hidden[part], weight, bias)
                logits = _log_softmax_(logits) if ctx.after is None else logits
            if ctx.after is None:
                through = logits.exp_().mul_(-grad[part, None])
                through.scatter_add_(1, targets[part, None], grad[part, None])
            else:
                through = _gradient_through(ctx.after, logits, targets[part], grad[part])
            through = through.to(hidden.dtype)
            if of_hidden is not None:
                torch.mm(through, weight, out=of_hidden[part])
            if wants_weight:
                of_weight = _add_product(of_weight, through, hidden[part])
            if wants_bias:
                total = through.sum(dim=0, dtype=torch.float32)
                of_bias = total if of_bias is None else of_bias + total
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(weight.dtype),
            None, None, None, None, None,
        )  # fmt: skip


def stride(rows: int) -> int:
    """Distance between the rows of a pass that are sampled, where not all are. The first row always is."""
    return max(1, -(-rows // _SAMPLED_ROWS))


def token_logps(logits: Tensor, targets: Tensor, every: int) -> tuple[Tensor, Tensor]:
    """Log-probs of targets under given logits: float32 [rows], nats, and the predictions of rows 0, every, 2*every and so on.

    logits: [rows, vocabulary]. targets: int64 [rows].
    The second is float64 [3, sampled], without gradient: log-prob of the target, entropy of the distribution, both nats, and 1
    where the target is the most likely token, else 0.
    """
    # float32 whatever the model's dtype: bfloat16 log-probs lose what DPO subtracts.
    values = logits.float().log_softmax(dim=-1)
    found = _predictions(values.detach()[::every], targets[::every])
    return values.gather(1, targets[:, None]).squeeze(1), found


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """hidden @ weight.T + bias, [rows, vocabulary], without gradient."""
    if hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return F.linear(hidden, weight.detach(), None if bias is None else bias.detach())
    logits = hidden.new_empty(len(hidden), len(weight))
    for start in range(0, len(weight), _CPU_COLUMNS):
        columns = slice(start, start + _CPU_COLUMNS)
        torch.mm(hidden, weight.detach()[columns].T, out=logits[:, columns])
    return logits if bias is None else logits.add_(bias.detach())


def _log_softmax_(logits: Tensor) -> Tensor:
    """Log-softmax in float32, in place on CPUs if the logits are float32 already."""
    values = logits.float()
    if values.device.type != "cpu":
        return values.log_softmax(dim=-1)
    for rows in torch.split(values, _CPU_ROWS):
        rows.copy_(rows.log_softmax(dim=-1))
    return values


def _gradient_through(after: Callable[[Tensor], Tensor], logits: Tensor, targets: Tensor, grad: Tensor) -> Tensor:
    """Gradient with respect to logits that the model changes before they become log-probs."""
    logits = logits.detach().requires_grad_()
    with torch.enable_grad():
        # A copy: some models change them in place.
        values = after(logits.clone()).float().log_softmax(dim=-1).gather(1, targets[:, None]).squeeze(1)
        return torch.autograd.grad(values, logits, grad)[0]


def _add_product(total: Tensor | None, through: Tensor, hidden: Tensor) -> Tensor:
    """total + through.T @ hidden. Sums of several chunks are float32: bfloat16 would lose the small ones."""
    if total is None:
        return through.T @ hidden
    if hidden.dtype == torch.float32:
        return total.addmm_(through.T, hidden)
    return total.float().add_(through.T @ hidden)


@torch.no_grad()
def _predictions(values: Tensor, targets: Tensor) -> Tensor:
    """See token_logps. values: log-probs, [rows, vocabulary]."""
    found = []
    # A few rows at a time: all would need the memory of the logits twice more.
    for rows, wanted in zip(torch.split(values, _SAMPLED_ROWS), torch.split(targets, _SAMPLED_ROWS), strict=True):
        entropy = -(rows.exp() * rows.clamp(min=-1e4)).sum(dim=-1, dtype=torch.float64)
        hits = rows.argmax(dim=-1) == wanted
        found.append(torch.stack([rows.gather(1, wanted[:, None]).squeeze(1).double(), entropy, hits.double()]))
    return torch.cat(found, dim=1)


class _FixedOutput(nn.Module):
    """Stands in for the transformer: returns a given output; its attributes are the transformer's."""

    def __init__(self, output: Any, transformer: Any) -> None:
        super().__init__()
        self.__dict__.update(output=output, transformer=transformer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["transformer"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["output"]


class _Recorder(nn.Module):
    """Stands in for the output layer: keeps what the layer returns, and returns a placeholder to the model."""

    output: Tensor | None

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.__dict__.update(layer=layer, output=None)

    def forward(self, hidden: Tensor) -> Tensor:
        self.__dict__["output"] = self.__dict__["layer"](hidden)
        return hidden.detach().new_zeros(1, 1, 1)


class _Constant(nn.Module):
    """Stands in for the output layer: returns given logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.__dict__["logits"] = logits

    def forward(self, _: Tensor) -> Tensor:
        logits: Tensor = self.__dict__["logits"]
        return logits


@contextmanager
def _replaced(module: nn.Module, stand_ins: Mapping[str, nn.Module]) -> Iterator[None]:
    """Replace submodules within this context."""
    before = {name: module._modules[name] for name in stand_ins}
    module._modules.update(stand_ins)
    try:
        yield
    finally:
        module._modules.update(before)
