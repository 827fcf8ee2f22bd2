"""Slices of parameters over any number of ranks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo_trainer.checkpoint.slices import partition, pieces

pytestmark = pytest.mark.unit


@given(numel=st.integers(0, 200), old=st.integers(1, 9), new=st.integers(1, 9))
def test_slices_of_any_number_of_ranks_fit_together(numel: int, old: int, new: int):
    flat = torch.arange(numel)
    shards = [flat[slice(*partition(numel, rank, old))] for rank in range(old)]
    for rank in range(new):
        start, end = partition(numel, rank, new)
        parts = [shards[r][a:b] for r, a, b in pieces(numel, start, end, old)]
        found = torch.cat(parts) if parts else flat[:0]
        assert found.tolist() == list(range(start, end))
