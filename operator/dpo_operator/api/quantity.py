"""Amounts as Kubernetes writes them."""

import re
from decimal import Decimal

_UNITS = {"": Decimal(1), "m": Decimal("0.001")} | {
    unit: Decimal(base**power)
    for base, units in ((1000, ("k", "M", "G", "T", "P", "E")), (1024, ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")))
    for power, unit in enumerate(units, start=1)
}


def amount(quantity: str) -> Decimal:
    """The number that a quantity such as 80Gi or 200m stands for. Raises ValueError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([a-zA-Z]*)", quantity)
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"expected an amount such as 80Gi, found {quantity!r}")
    return Decimal(found[1]) * _UNITS[found[2]]


def to_bytes(quantity: str) -> float:
    """Bytes of a quantity such as 80Gi. Raises ValueError."""
    return float(amount(quantity))


def gibibytes(size: float) -> str:
    """For people: 12.3 GiB, or MiB below one."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def duration(seconds: float) -> str:
    """Two largest units: 3d4h, 1h12m, 5m30s, 45s."""
    total = max(0, round(seconds))
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    for i, (unit, size) in enumerate(units):
        if total >= size:
            rest = (total % size) // units[i + 1][1] if i + 1 < len(units) else 0
            return f"{total // size}{unit}" + (f"{rest}{units[i + 1][0]}" if rest else "")
    return "0s"


def hours(seconds: float) -> str:
    """Seconds as hours for people, such as 0.025, 12.3 and 1290."""
    value = seconds / 3600
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"
