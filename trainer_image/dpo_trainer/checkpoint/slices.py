"""Which elements of a parameter each rank's shard holds. Plain numbers: neither torch nor a file is needed."""

# fp32 master weights, and Adam's two moments.
KINDS = ("fp32", "exp_avg", "exp_avg_sq")


def partition(numel: int, rank: int, world_size: int) -> tuple[int, int]:
    """Elements [start, end) of a flattened parameter that a rank holds, without padding."""
    size = -(-numel // world_size)
    return min(rank * size, numel), min((rank + 1) * size, numel)


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
