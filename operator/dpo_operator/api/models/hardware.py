"""What ranks run on: memory, arithmetic and bandwidths, from the makers' data sheets."""

from dataclasses import dataclass, replace

GIB = 1 << 30
TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Device:
    """One rank's processor.

    memory: bytes, None where not known. flops: dense multiply-adds count as two, per second: in bf16 or fp16, and in fp32.
    bandwidth: bytes per second of its memory. link: bytes per second to the other ranks of its node, one way. mfu: share of the
    flops that a training step is assumed to reach. bf16: whether its tensor cores know bfloat16.
    """

    name: str
    memory: float | None
    flops: float
    flops_fp32: float
    bandwidth: float
    link: float
    mfu: float = 0.4
    bf16: bool = True

    def peak(self, precision: str) -> float:
        """Floating-point operations per second at most."""
        return self.flops_fp32 if precision == "fp32" or (precision == "bf16" and not self.bf16) else self.flops

    def rate(self, precision: str) -> float:
        """Floating-point operations per second that are assumed to be reached."""
        return self.mfu * self.peak(precision)


# Memory as the driver reports it is a little less than the name says. fp32: without TF32, as the trainer computes.
GPUS: dict[str, Device] = {
    device.name: device
    for device in (
        Device("h200", 140 * GIB, 989 * TERA, 67 * TERA, 4.8e12, 450 * GIGA),
        Device("h100", 79 * GIB, 989 * TERA, 67 * TERA, 3.35e12, 450 * GIGA),
        Device("h100-pcie", 79 * GIB, 756 * TERA, 51 * TERA, 2.0e12, 64 * GIGA),
        Device("b200", 178 * GIB, 2250 * TERA, 75 * TERA, 7.7e12, 900 * GIGA),
        Device("a100-80", 79 * GIB, 312 * TERA, 19.5 * TERA, 2.0e12, 300 * GIGA),
        Device("a100-40", 39 * GIB, 312 * TERA, 19.5 * TERA, 1.55e12, 300 * GIGA),
        Device("l40s", 44 * GIB, 362 * TERA, 91.6 * TERA, 864e9, 32 * GIGA),
        Device("l4", 22 * GIB, 121 * TERA, 30.3 * TERA, 300e9, 32 * GIGA),
        Device("a10g", 22 * GIB, 70 * TERA, 31.2 * TERA, 600e9, 32 * GIGA),
        Device("t4", 14.7 * GIB, 65 * TERA, 8.1 * TERA, 300e9, 16 * GIGA, bf16=False),
        Device("v100-32", 31.7 * GIB, 125 * TERA, 15.7 * TERA, 900e9, 150 * GIGA, bf16=False),
    )
}  # fmt: skip
# One core of a server processor with AVX2 in fp32, as a stand-in until a user measures theirs; bf16 is no faster there.
CPU = Device("cpu", None, 60e9, 60e9, 10e9, 10e9, mfu=0.7)


def cpu(flops: float | None = None, memory: float | None = None) -> Device:
    """A CPU. flops: matrix products per second that were measured on it; all of them are assumed to be reached."""
    found = replace(CPU, memory=memory)
    return found if flops is None else replace(found, flops=flops, flops_fp32=flops, mfu=1.0)


# What a GPU's own name has in it, and its entry; the first that fits counts.
_NAMES = (
    ("h200", "h200"), ("b200", "b200"), ("h100 pcie", "h100-pcie"), ("h100", "h100"), ("a100-pcie-40", "a100-40"),
    ("a100-sxm4-40", "a100-40"), ("a100", "a100-80"), ("l40s", "l40s"), ("a10g", "a10g"), ("v100", "v100-32"), ("l4", "l4"),
    ("t4", "t4"),
)  # fmt: skip


def of_name(name: str) -> Device | None:
    """The GPU that calls itself so, such as "NVIDIA H100 80GB HBM3"; None when it is not in the table."""
    words = name.lower()
    return next((GPUS[entry] for part, entry in _NAMES if part in words and f"{part}0" not in words), None)
