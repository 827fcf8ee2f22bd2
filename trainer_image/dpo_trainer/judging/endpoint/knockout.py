"""The best and the worst of some answers, by comparisons of two."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Compare = Callable[[int, int], Coroutine[Any, Any, int | None]]
Comparison = tuple[int, int, int | None]


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results of coroutines that run at the same time. When one raises, the others end first: what they have in flight is paid for."""
    found = await asyncio.gather(*work, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return [one for one in found if not isinstance(one, BaseException)]


async def knock_out(count: int, compare: Compare) -> tuple[int | None, int | None, tuple[Comparison, ...]]:
    """Find the best and the worst of `count` answers with the fewest comparisons, 3/2 of their number.

    All answers are compared two by two; winners play on for the best, losers for the worst. compare: the better of two, None for a tie.
    After a tie the first one plays on as if it had won, but a tie connects nothing: best and worst are given only when verdicts lead from
    one to the other, or when they differ by a last comparison of the two.
    Returns best, worst (None for both: a tie), and all comparisons with their winners.
    """
    games: dict[tuple[int, int], int | None] = {}

    async def stage(players: Sequence[int]) -> tuple[list[int], list[int]]:
        """Those that play on as winners, and as losers; one without an opponent is both."""
        drawn = list(zip(players[::2], players[1::2], strict=False))
        won = await together(compare(first, second) for first, second in drawn)
        games.update(zip(drawn, won, strict=True))
        over = list(players[len(drawn) * 2 :])
        ranked = [(b, a) if winner == b else (a, b) for (a, b), winner in zip(drawn, won, strict=True)]
        return [winner for winner, _ in ranked] + over, [loser for _, loser in ranked] + over

    top, bottom = await stage(range(count))
    while len(top) > 1:
        top, _ = await stage(top)
    # One that had no opponent at first may have won since.
    bottom = [player for player in bottom if player not in games.values()]
    while len(bottom) > 1:
        _, bottom = await stage(bottom)
    best, worst = top[0], bottom[0]
    if not _leads(games, best, worst):
        if best != worst and not {(best, worst), (worst, best)} & games.keys():
            games[best, worst] = await compare(best, worst)
        winner = games.get((best, worst), games.get((worst, best)))
        best, worst = (worst, best) if winner == worst else (best, worst)
        if winner is None:
            return None, None, _listed(games)
    return best, worst, _listed(games)


def _leads(games: dict[tuple[int, int], int | None], start: int, end: int) -> bool:
    """Whether verdicts lead from one answer down to another."""
    reached, new = {start}, [start]
    while new:
        at = new.pop()
        below = {a if b == at else b for (a, b), winner in games.items() if winner == at} - reached
        reached |= below
        new += below
    return end in reached and start != end


def _listed(games: dict[tuple[int, int], int | None]) -> tuple[Comparison, ...]:
    return tuple((first, second, winner) for (first, second), winner in games.items())
