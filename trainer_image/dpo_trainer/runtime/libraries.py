"""Start-up cost and log output of third-party libraries."""

import logging
import os
import sys
import warnings
from typing import Any


def import_peft() -> Any:
    """Import the package peft without bitsandbytes, and return it.

    PEFT imports bitsandbytes where it is installed, for 4-bit and 8-bit layers that this trainer does not use. That import
    loads torch's compiler, a second of CPU time at each start, so bitsandbytes is hidden during the import.
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


def import_tokenizers_alone() -> None:
    """Import transformers as if torch were not installed, for a process that uses its tokenizers alone.

    Transformers imports torch wherever it finds it, and its tokenizers don't use it: five of eight seconds of CPU time at
    each start. Models can't be loaded afterwards. Does nothing where one of the two is loaded already.
    """
    modules: dict[str, Any] = sys.modules
    if "torch" in modules or "transformers" in modules:
        return
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no torch
    modules["torch"] = None
    try:
        import transformers  # noqa: F401 It keeps what it found.
    finally:
        del modules["torch"]


def quiet_libraries() -> None:
    """Filter library warnings that users can't act on. Imports none of the libraries."""
    # PEFT reads an attribute of transformers by its old name.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # bitsandbytes reports which kernels it lacks for this CPU.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
