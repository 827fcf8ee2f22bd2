"""Memory that the process holds and no longer uses."""

import ctypes
import ctypes.util
import gc


def release_free() -> None:
    """Give free memory of the C heap back to the system.

    Loading a model leaves holes of its size behind. glibc keeps them, and what comes later does not always fit into them, so that the
    peak of a run would depend on how its model was read. Other C libraries have no such call, and nothing is done.
    """
    gc.collect()
    name = ctypes.util.find_library("c")
    trim = getattr(ctypes.CDLL(name), "malloc_trim", None) if name else None
    if trim is not None:
        trim(0)
