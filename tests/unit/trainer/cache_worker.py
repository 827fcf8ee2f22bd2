"""Jobs that share a cache, each in a process of its own; HF_ENDPOINT and HF_HOME are set by the caller.

    python -m tests.unit.trainer.cache_worker [MODULE …]

The modules are loaded first. Each line of the standard input is a JSON list, [mode, jobs, cache, folder, longest wait in seconds]; the answer is a line with the
largest exit code of these jobs. Mode prepare: the whole phase, with data from a file or from the hub. fetch: a configuration and the weights alone. Each job leaves
<folder>/<number>.json: its exit code and message, its warnings, and the activities that it showed. Jobs are forked after the
libraries were loaded, so that they begin together, and at once.
"""

import importlib
import json
import logging
import os
import sys
from pathlib import Path

import huggingface_hub

from dpo_trainer.pretrained import files
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.libraries import import_tokenizers_alone
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.sources import cache as shared_cache
from dpo_trainer.sources import retrying
from dpo_trainer.sources.resolve import HubSource

MODEL = "org/tiny"
DATASET = "org/pairs"
FILES = ("config.json", "model.safetensors")


class Warnings(logging.Handler):
    """Collects the warnings that are logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def work(mode: str, number: int, cache: Path, folder: Path) -> None:
    warnings = Warnings()
    logging.getLogger("dpo_trainer").addHandler(warnings)
    activities: list[str] = []
    own = folder / f"job-{number}"
    code, message = 0, ""
    try:
        if mode == "fetch":
            listed = files.listing(HubSource(MODEL, None), None)
            files.fetch(listed, FILES, own, None, shared_cache.Cache(cache), lambda text, _: activities.append(text))
        else:
            from dpo_operator.api.types import DPOJob
            from dpo_trainer.prepare import phase as prepare
            from dpo_trainer.prepare.inputs import Inputs

            # Each prepare pod has its own.
            huggingface_hub.constants.HF_HUB_CACHE = str(own / "hub")
            source = DATASET if mode == "prepare-hub" else str(folder / "pairs.jsonl")
            data = {"train": {"source": source}, "maxLength": 512}
            job = DPOJob.model_validate({"metadata": {"name": "j"}, "spec": {"model": {"name": MODEL}, "data": data}})
            inputs = Inputs(folder, None, shared_cache.Cache(cache), lambda text, _: activities.append(text))
            prepare.run(job, WorkDir(own), inputs)
    except TrainerError as error:
        code, message = int(error.exit_code), str(error)
    result = {"code": code, "message": message, "warnings": warnings.messages, "activities": activities}
    (folder / f"{number}.json").write_text(json.dumps(result))


def run(mode: str, jobs: int, cache: str, folder: str, longest_wait: float) -> int:
    children = []
    for number in range(jobs):
        child = os.fork()
        if child == 0:
            try:
                shared_cache.LONGEST_WAIT_SECONDS = longest_wait
                work(mode, number, Path(cache), Path(folder))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def main(modules: list[str]) -> None:
    import_tokenizers_alone()  # as prepare does
    for module in modules:
        importlib.import_module(module)
    retrying.FIRST_WAIT_SECONDS = 0.01
    for line in sys.stdin:
        print(run(*json.loads(line)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
