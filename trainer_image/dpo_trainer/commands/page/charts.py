"""Curves as points of an SVG picture; colours are the page's, so that it is readable in dark and in light."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]

# Of the drawing, in its own units; the page scales it.
WIDTH, HEIGHT = 520, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 26
# More points than this are not told apart at this size.
MAX_POINTS = 400


@dataclass(frozen=True)
class Series:
    """A curve. style: class of the page, such as train. dots: also mark each point. joined: false for points alone."""

    label: str
    style: str
    points: Points
    dots: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Drawn:
    """A curve in the drawing's units. line: of a polyline."""

    label: str
    style: str
    line: str
    dots: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A picture. x_ticks, y_ticks: place and text. marks: places of restarts and the like, with what they are."""

    title: str
    series: list[Drawn]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[tuple[float, str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def chart(
    title: str,
    series: Sequence[Series],
    marks: Sequence[tuple[float, str]] = (),
    *,
    share: bool = False,
    whole: bool = True,
) -> Chart | None:
    """A picture of curves; None without a point. Values that are no number are left out.

    share: the axis goes from 0 to 1. whole: what they are over are whole numbers, such as optimizer steps.
    """
    kept = [(each, [(x, y) for x, y in each.points if math.isfinite(y)]) for each in series]
    kept = [(each, points) for each, points in kept if points]
    if not kept:
        return None
    xs = [x for _, points in kept for x, _ in points]
    ys = [y for _, points in kept for _, y in points]
    x_low, x_high = min(xs), max(xs)
    y_ticks = ticks(0.0, 1.0) if share else ticks(min(ys), max(ys))
    y_low, y_high = min(min(ys), y_ticks[0]), max(max(ys), y_ticks[-1])

    def x_of(x: float) -> float:
        return round(LEFT + (x - x_low) / ((x_high - x_low) or 1) * (WIDTH - LEFT - RIGHT), 1)

    def y_of(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / ((y_high - y_low) or 1) * (HEIGHT - TOP - BOTTOM), 1)

    drawn = []
    for each, points in kept:
        places = [(x_of(x), y_of(y)) for x, y in _thinned(points)]
        drawn.append(
            Drawn(
                each.label,
                each.style,
                " ".join(f"{x},{y}" for x, y in places) if each.joined else "",
                places if each.dots or len(places) == 1 else [],
            )
        )
    between = [x for x in ticks(x_low, x_high) if x_low <= x <= x_high]
    steps = (
        sorted({round(x) for x in between} | {round(x_low), round(x_high)})
        if whole
        else sorted({x_low, *between, x_high})
    )
    apart = [step for i, step in enumerate(steps) if i in (0, len(steps) - 1) or _apart(step, steps, x_of)]
    return Chart(
        title,
        drawn,
        [(x_of(step), f"{step:.3g}" if isinstance(step, float) else str(step)) for step in apart],
        [(y_of(y), f"{y:.6g}") for y in y_ticks],
        [(x_of(x), text) for x, text in marks if x_low <= x <= x_high],
    )


def ticks(low: float, high: float) -> list[float]:
    """About five round values that span a range."""
    span = high - low
    if span <= 0:
        span = abs(high) or 1.0
        low, high = low - span / 2, high + span / 2
    rough = span / 4
    size = 10.0 ** math.floor(math.log10(rough))
    size *= next(factor for factor in (1, 2, 5, 10) if factor * size >= rough)
    # 0.6 / 0.05 is a little less than 12.
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [float(f"{number * size:.12g}") for number in range(first, last + 1)]


def _apart(step: float, steps: Sequence[float], x_of: Callable[[float], float]) -> bool:
    """Whether a text between the first and the last has room."""
    return x_of(step) - x_of(steps[0]) > 40 and x_of(steps[-1]) - x_of(step) > 40


def _thinned(points: Points) -> Points:
    """At most MAX_POINTS, each the mean of its share."""
    if len(points) <= MAX_POINTS:
        return points
    shares = [points[len(points) * i // MAX_POINTS : len(points) * (i + 1) // MAX_POINTS] for i in range(MAX_POINTS)]
    return [(sum(x for x, _ in share) / len(share), sum(y for _, y in share) / len(share)) for share in shares]
