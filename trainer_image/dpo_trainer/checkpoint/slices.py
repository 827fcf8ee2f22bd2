"""Which elements of a parameter each rank's shard holds. Plain numbers: neither torch nor a file is needed."""

from collections.abc import Mapping

# fp32 master weights, and Adam's two moments.
KINDS = ("fp32", "exp_avg", "exp_avg_sq")


def held(numel: int, world_size: int) -> int:
    """Elements of a parameter in each rank's memory, with padding."""
    return -(-numel // world_size)


def partition(numel: int, rank: int, world_size: int) -> tuple[int, int]:
    """Elements [start, end) of a flattened parameter that a rank holds, without padding."""
    size = held(numel, world_size)
    return min(rank * size, numel), min((rank + 1) * size, numel)


def slices_of(numels: Mapping[str, int], rank: int, world_size: int) -> dict[str, tuple[int, int]]:
    """The part [start, end) of each parameter that a rank holds, without those of which it has none. numels: elements by name."""
    parts = {name: partition(numel, rank, world_size) for name, numel in numels.items()}
    return {name: (start, end) for name, (start, end) in parts.items() if end > start}


def pieces(numel: int, start: int, end: int, world_size: int) -> list[tuple[int, int, int]]:
    """Where elements [start, end) of a parameter are in a checkpoint of world_size ranks.

    Returns (rank, first, last) with [first, last) counted in that rank's slice, in order.
    """
    found = []
    for rank in range(world_size):
        low, high = partition(numel, rank, world_size)
        first, last = max(start, low), min(end, high)
        if first < last:
            found.append((rank, first - low, last - low))
    return found
