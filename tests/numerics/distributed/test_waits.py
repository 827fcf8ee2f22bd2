"""How long ranks wait for one another: longer before training than in it, and longest for agreements, which have a group of their own."""

import pytest

from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics


def waits() -> list[float]:
    """Time-outs in seconds of the default group before and in training, and of agreements; and the sum of what ranks agreed on."""
    import torch
    from torch.distributed.distributed_c10d import _get_default_group

    from dpo_trainer.distributed.ranks import Ranks
    from dpo_trainer.distributed.world import begin_training, join_world

    def of(group: object) -> float:
        backend = group._get_backend(torch.device("cpu"))  # type: ignore[attr-defined]
        return float(backend.options._timeout.total_seconds())

    join_world("cpu")
    agreed = Ranks().own_group()
    before = of(_get_default_group())
    begin_training()
    return [before, of(_get_default_group()), of(agreed._group), sum(agreed.gather(agreed.rank + 1))]


def test_agreements_wait_longest_and_training_shortest():
    from dpo_trainer.distributed import ranks, world

    expected = [world.START_SECONDS, world.RUN_SECONDS, ranks.AGREEMENT_SECONDS, 3]
    assert on_ranks(2, waits) == [expected, expected]
    assert world.RUN_SECONDS < world.START_SECONDS < ranks.AGREEMENT_SECONDS
