"""How findings are put: numbers in words, and values to try."""

import math
from collections.abc import Sequence

from dpo_operator.api.diagnosis import Code, Figure, Finding, Severity
from dpo_operator.api.types import DPOJobSpec


def finding(
    code: Code,
    severity: Severity,
    step: int,
    cause: str,
    figures: Sequence[tuple[str, float | None, float | None]],
    setting: str,
    suggestion: str,
) -> Finding:
    """A finding. figures: name, value and limit; without a value, as where it was not measured, one is left out."""
    kept = tuple(
        Figure(name=name, value=round_(value), limit=limit)
        for name, value, limit in figures
        if value is not None and math.isfinite(value)
    )
    return Finding(
        code=code.value,
        severity=severity,
        step=step,
        figures=kept[:8],
        cause=cause,
        setting=setting,
        suggestion=suggestion,
    )


def round_(value: float, digits: int = 4) -> float:
    """Rounded to significant digits, so that records are short."""
    return float(f"{value:.{digits}g}")


def nice(value: float) -> float:
    """The nearest of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return float(f"{min((1.0, 2.0, 5.0, 10.0), key=lambda step: abs(math.log(value / (step * power)))) * power:.0e}")


def short(value: float) -> str:
    """A setting's value as people write it: 0.05, 1e-5."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    if not exponent:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        mantissa = f"{float(mantissa):g}"
    return f"{mantissa}e{int(exponent)}"


def instead(setting: str, value: float, now: float) -> str:
    """A value to try."""
    return f"try {setting} {short(value)} instead of {short(now)}"


def other_rate(spec: DPOJobSpec, factor: float) -> str:
    """Another learning rate to try."""
    rate = spec.learning_rate
    return instead("training.learningRate", min(1.0, nice(rate * factor)), rate)


def percent(share: float) -> str:
    """A share in words."""
    return f"{share:.0%}"
