"""The copy of a rank's state in host memory."""

import pytest
import torch

from dpo_trainer.checkpoint.hostcopy import HostCopy
from dpo_trainer.checkpoint.shard import Entry

pytestmark = pytest.mark.unit


def entry(values: torch.Tensor) -> Entry:
    return Entry("fp32/w", torch.float32, values.numel(), lambda: values)


def test_a_reserved_buffer_has_the_size_of_the_entries_and_is_used() -> None:
    first, second = torch.arange(1000.0), torch.arange(300.0)
    copy = HostCopy()
    copy.reserve([entry(first), entry(second)])
    # Each begins at a multiple of 64 bytes: 4,032 and 1,216.
    assert copy._buffer.numel() == 4032 + 1216
    place = copy._buffer.data_ptr()
    taken = copy.take([entry(first), entry(second)])
    assert taken[0].read().data_ptr() == place
    first.zero_()
    assert taken[0].read().sum() == 499_500
    assert torch.equal(taken[1].read(), second)
    copy.take([entry(torch.zeros(20_000))])
    assert copy._buffer.numel() == 80_000
