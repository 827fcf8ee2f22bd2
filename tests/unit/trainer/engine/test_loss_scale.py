"""float16's loss scale: halved by an overflow, doubled after a thousand updates, hopeless after twenty overflows."""

import pytest

from dpo_trainer.engine.loss_scale import LossScale

pytestmark = pytest.mark.unit


def test_each_overflow_halves_it_and_an_update_resets_the_count():
    scale = LossScale(factor=1024.0, updates=500)
    scale = scale.after(applied=False).after(applied=False)
    assert scale == LossScale(factor=256.0, updates=0, overflows=2)
    assert scale.after(applied=True) == LossScale(factor=256.0, updates=1, overflows=0)


def test_a_thousand_updates_without_overflow_double_it():
    scale = LossScale(factor=8.0)
    for _ in range(999):
        scale = scale.after(applied=True)
    assert scale.factor == 8.0
    scale = scale.after(applied=True)
    assert scale == LossScale(factor=16.0)
    # An overflow resets the count.
    for _ in range(999):
        scale = scale.after(applied=True)
    assert scale.after(applied=False).after(applied=True) == LossScale(factor=8.0, updates=1)


def test_twenty_overflows_in_a_row_are_hopeless():
    scale = LossScale()
    for _ in range(19):
        scale = scale.after(applied=False)
    assert not scale.is_hopeless
    assert scale.after(applied=False).is_hopeless
    assert not scale.after(applied=True).after(applied=False).is_hopeless
