"""PEFT, without what it would load besides."""

import sys
from typing import Any


def import_peft() -> Any:
    """The package peft; the first call imports it.

    Where bitsandbytes is installed PEFT imports it, for layers of 4 and 8 bits, and that loads all of torch's compiler: a
    second of CPU time at each start, for layers that this trainer does not make. So it is out of sight meanwhile.
    """
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    hidden = "bitsandbytes" not in modules
    if hidden:
        modules["bitsandbytes"] = None
    try:
        import peft
    finally:
        if hidden:
            del modules["bitsandbytes"]
    return peft
