"""JSON collectives: an error on one rank raises on all."""

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.runtime.errors import TrainerError

pytestmark = pytest.mark.unit


def test_an_unexpected_error_raises_on_every_rank():
    def broken() -> None:
        raise KeyError("no such tensor")

    with pytest.raises(TrainerError, match=r"KeyError: 'no such tensor' \(") as caught:
        Ranks().run_on_all(broken)
    assert caught.value.exit_code is ExitCode.INTERNAL_ERROR
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_lost_peer_during_the_work_is_raised_at_once():
    def lost() -> None:
        raise RuntimeError("Connection closed by peer [10.0.0.7]:4711")

    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        Ranks().run_on_all(lost)
