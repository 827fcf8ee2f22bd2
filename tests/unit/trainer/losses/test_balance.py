"""The auxiliary loss of routers: transformers' figure and gradient, whatever the parts it is computed in."""

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from dpo_trainer.losses.balance import balance_loss, routing_sums

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("top_k", [1, 2])
def test_parts_add_up_to_what_transformers_computes(top_k: int) -> None:
    generator = torch.Generator().manual_seed(top_k)
    layers = [torch.randn(12, 5, generator=generator, requires_grad=True) for _ in range(3)]
    mask = torch.tensor([1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 0])
    expected = load_balancing_loss_func(tuple(layers), 5, top_k, mask.view(2, 6))
    gradients = torch.autograd.grad(expected, layers)

    # Two micro-batches, whose tokens are 0 to 6 and 7 to 11; padding counts 0 times.
    parts = [
        torch.stack([routing_sums(layer[part], top_k, mask[part].float()) for layer in layers]).sum(dim=0)
        for part in (slice(0, 7), slice(7, 12))
    ]
    tokens = torch.stack([counted.detach() for _, counted in parts]).sum(dim=0)
    found = torch.stack([balance_loss(probabilities, tokens, top_k) for probabilities, _ in parts]).sum()
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(torch.autograd.grad(found, layers), gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_token_that_counts_twice_is_as_two_tokens() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    twice = routing_sums(logits, 2, torch.tensor([2.0, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(twice, routing_sums(logits[[0, 0, 1, 2]], 2, torch.ones(4)))
