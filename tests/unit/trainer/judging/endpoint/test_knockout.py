"""The best and the worst of some answers, by comparisons."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_trainer.judging.endpoint.knockout import knock_out

pytestmark = pytest.mark.unit

Games = tuple[tuple[int, int, int | None], ...]


def played(count: int, better: Callable[[int, int], int | None]) -> tuple[int | None, int | None, Games]:
    async def compare(first: int, second: int) -> int | None:
        await asyncio.sleep(0)
        return better(first, second)

    return asyncio.run(knock_out(count, compare))


def by_value(values: list[int]) -> Callable[[int, int], int | None]:
    def better(first: int, second: int) -> int | None:
        a, b = values[first], values[second]
        return None if a == b else first if a > b else second

    return better


@given(st.permutations(range(8)), st.integers(2, 8))
def test_best_and_worst_are_found_in_any_order(order: list[int], count: int) -> None:
    values = [value for value in order if value < count]
    best, worst, games = played(count, by_value(values))
    assert (values[best or 0], values[worst or 0]) == (count - 1, 0)
    assert len(games) <= -(-3 * count // 2) - 2 + count % 2
    assert len({frozenset(game[:2]) for game in games}) == len(games)


@pytest.mark.parametrize(("count", "games"), [(2, 1), (4, 4), (8, 10), (16, 22)])
def test_comparisons_are_the_fewest_that_can_do(count: int, games: int) -> None:
    assert len(played(count, by_value(list(range(count))))[2]) == games


@pytest.mark.parametrize("count", range(2, 9))
def test_ties_alone_give_no_pair(count: int) -> None:
    best, worst, games = played(count, lambda _first, _second: None)
    assert (best, worst) == (None, None)
    assert all(winner is None for *_, winner in games)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=9))
def test_with_ties_a_pair_is_still_one_that_the_judge_decided(values: list[int]) -> None:
    best, worst, games = played(len(values), by_value(values))
    if best is None or worst is None:
        # The last comparison, of the two that were left, was a tie.
        assert any(winner is None for *_, winner in games)
    else:
        assert values[best] > values[worst]


@given(
    st.dictionaries(st.tuples(st.integers(0, 6), st.integers(0, 6)), st.sampled_from([0, 1, None])), st.integers(2, 7)
)
def test_any_judge_is_borne(verdicts: dict[tuple[int, int], int | None], count: int) -> None:
    """Also one that contradicts itself: then there is a pair or none, of two different answers."""

    def better(first: int, second: int) -> int | None:
        side = verdicts.get((first, second))
        return None if side is None else (first, second)[side]

    best, worst, _ = played(count, better)
    assert (best is None) == (worst is None)
    assert best is None or best != worst
