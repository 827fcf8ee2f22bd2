"""Return free heap memory to the operating system."""

import ctypes
import ctypes.util
import gc


def release_free() -> None:
    """Return free memory of the C heap to the operating system. Does nothing with C libraries other than glibc.

    Loading a model leaves free blocks of its size. glibc keeps them, and later allocations do not always fit into them, so the peak
    memory of a run would depend on how its model was read.
    """
    gc.collect()
    name = ctypes.util.find_library("c")
    trim = getattr(ctypes.CDLL(name), "malloc_trim", None) if name else None
    if trim is not None:
        trim(0)
