"""What libraries say that nobody who runs a job can change."""

import logging
import warnings


def quiet_libraries() -> None:
    """Keep it out of the log of this process. Imports none of them."""
    # PEFT asks transformers for an attribute by its old name.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # It would say which of its kernels this CPU could have.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
