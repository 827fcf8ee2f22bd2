import pytest

from dpo_operator.sizing.export import Stored
from dpo_operator.sizing.rounds import estimate
from tests.unit.planning.build import a_job

pytestmark = pytest.mark.unit

STORED = Stored(checkpoint=100.0, export=1000.0, memory=0.0)
ENDPOINT = {"url": "http://judge/v1", "model": "m"}
ASKS = {"type": "endpoint", "endpoint": ENDPOINT}
LENGTH = {"type": "builtin", "builtin": {"name": "length", "tokens": 5}}


def cost(judge=LENGTH, pairs=None, weights=0.0, **fields):
    generation = {"samplesPerPrompt": 4, "maxNewTokens": 10}
    spec = a_job(
        iterative={"rounds": 3, "judge": judge, "generation": generation, "winRate": {"prompts": 0}} | fields
    ).spec
    return estimate(spec, STORED, pairs, weights)


def test_a_job_without_rounds_costs_nothing():
    assert estimate(a_job().spec, STORED, 100) is None


def test_answers_tokens_and_room_are_counted():
    found = cost(promptsPerRound=50)
    assert (found.prompts, found.answers, found.tokens, found.calls) == (50, 600, 6000, None)
    # Two checkpoints of two ranks and an export in each round, besides the answers.
    assert found.disk == 6000 * 8 + 3 * (1000 + 2 * 2 * 100)


def test_copies_that_generate_share_their_weights_among_their_gpus():
    assert cost(weights=800.0).weights == 800
    assert cost(weights=800.0, generation={"engine": "vllm", "tensorParallel": 4}).weights == 200


def test_policies_are_compared_once_more_than_there_are_rounds():
    assert cost(promptsPerRound=50, winRate={"prompts": 10}).answers == 600 + 4 * 10
    assert cost(promptsPerRound=50, winRate={"prompts": 10}, evaluateLast=False).answers == 600 + 3 * 10


@pytest.mark.parametrize(
    ("more", "calls"), [({}, 2 * 3 * 50 * 6), ({"bothOrders": False}, 3 * 50 * 6), ({"mode": "score"}, 3 * 50 * 4)]
)
def test_requests_depend_on_how_the_judge_is_asked(more, calls):
    assert cost(ASKS | {"endpoint": ENDPOINT | more}, promptsPerRound=50).calls == calls


def test_prompts_are_those_of_the_pairs_where_nothing_else_is_said():
    assert cost(pairs=300).prompts == 100
    assert cost(pairs=300, prompts={"source": "org/p", "limit": 600}).prompts == 200
    assert cost(pairs=300, prompts={"source": "org/p"}).prompts is None
    assert cost(prompts={"source": "org/p"}).answers == 3 * 1000 * 4
