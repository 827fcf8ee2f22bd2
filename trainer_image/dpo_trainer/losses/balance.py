"""The auxiliary loss that keeps the experts of a model evenly used: equations (4) to (6) of Switch Transformers (2101.03961), as transformers computes it.

For E experts it is E times the sum over experts of f·P: f is how many of its tokens a layer sends to the expert, P the router's mean probability for it, both over
all tokens of all layers. It is the experts per token when all are used alike, and grows up to E times that. f has no gradient.
"""

import torch
from torch import Tensor


def routing_sums(logits: Tensor, top_k: int, weight: Tensor) -> Tensor:
    """Of one layer: [2, experts], the router's probabilities, with gradient, and the tokens that each expert gets, summed over tokens.

    logits: [tokens, experts]. top_k: experts per token. weight: float32 [tokens], how often a token counts.
    """
    probabilities = logits.float().softmax(dim=-1)
    with torch.no_grad():
        chosen = torch.zeros_like(probabilities).scatter_(1, probabilities.topk(top_k, dim=-1).indices, 1.0)
    return torch.stack([weight @ probabilities, weight @ chosen])


def balance_loss(probabilities: Tensor, tokens: Tensor, top_k: int) -> Tensor:
    """The part of some tokens in the loss of all; the parts add up to it. Scalar.

    probabilities: [experts], sums over these tokens. tokens: [experts], how many tokens each expert gets of all.
    """
    count = tokens.sum() / top_k
    return len(tokens) * (tokens * probabilities).sum() / count**2
