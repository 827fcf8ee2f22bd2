"""PEFT, without what it would load besides."""

import logging
import sys
import warnings
from typing import Any


def import_peft() -> Any:
    """The package peft; the first call imports it.

    Where bitsandbytes is installed PEFT imports it, for layers of 4 and 8 bits, and that loads all of torch's compiler: a
    second of CPU time at each start, for layers that this trainer does not make. So it is out of sight meanwhile.
    """
    modules: dict[str, Any] = sys.modules
    hidden = "bitsandbytes" not in modules
    if hidden:
        modules["bitsandbytes"] = None
    try:
        import peft
    finally:
        if hidden:
            del modules["bitsandbytes"]
    return peft


def quiet_libraries() -> None:
    """Keep it out of the log of this process. Imports none of them."""
    # PEFT asks transformers for an attribute by its old name.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # It would say which of its kernels this CPU could have.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
