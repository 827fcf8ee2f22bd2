"""The operator's process: `python -m dpo_operator`."""

import asyncio
import logging
import os
import sys

import kopf

from dpo_operator.config import Config, ConfigError
from dpo_operator.controller import run
from dpo_operator.kopf_settings import OneLineEach


def main() -> int:
    """Read the settings, set up logging, run. Returns the exit status."""
    try:
        config = Config.from_environment(os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    kopf.configure(log_format=kopf.LogFormat.JSON if config.log_format == "json" else kopf.LogFormat.PLAIN)
    for handler in logging.getLogger().handlers:
        handler.addFilter(OneLineEach())
    # Silence per-event and per-probe log lines.
    for name in ("kopf.objects", "kopf.activities.probe", "aiohttp.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return 0 if asyncio.run(run(config)) else 1


if __name__ == "__main__":
    sys.exit(main())
