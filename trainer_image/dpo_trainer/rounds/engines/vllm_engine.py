"""The engine `vllm`: its offline class in a process of its own, see vllm_process.py.

A process of its own gives the GPU's memory back for sure when it ends, and ends with generate, also when that is killed. Requests and answers are
token ids; vLLM has no tokenizer here and decodes nothing. Its own draws belong to the seed of each answer, so they don't depend on what else is answered,
but its kernels may round a near-tie otherwise over other batches.

Libraries of the trainer's image are missing in vLLM's; what may be imported here is checked by a test.
"""

import contextlib
import importlib.util
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.model import AdapterType
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.data.dataset import TokenIds
from dpo_trainer.data.prompts import PromptSet
from dpo_trainer.pretrained import adapters
from dpo_trainer.rounds.engines.engine import seed_of
from dpo_trainer.rounds.engines.vllm_process import Loading, Made, Request, serve
from dpo_trainer.rounds.identity import policy_files
from dpo_trainer.rounds.units import Answer, Sampling
from dpo_trainer.runtime.devices import gpus_of_process, has_gpu
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Ranks of adapters that vLLM has kernels for; a smaller adapter is padded to the next of them.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Seconds for vLLM's process to end by itself.
_END_SECONDS = 10.0


class VllmEngines:
    """Loads policies into vLLM, on the GPUs that belong to this process."""

    def __init__(self, spec: DPOJobSpec, work: WorkDir, telemetry: Telemetry) -> None:
        """work: the round's leg. Raises TrainerError INVALID_CONFIGURATION where vLLM is not installed."""
        if importlib.util.find_spec("vllm") is None:
            raise invalid_configuration(
                "spec.iterative.generation.engine: vLLM is not installed here. Give an image that has it as pod.generateImage (docs/rounds.md says how it is "
                "built); for dpo run, set DPO_GENERATE_PYTHON to the Python of an environment that has it; or use engine transformers"
            )
        self._spec, self._work, self._telemetry = spec, work, telemetry

    def open(self, number: int) -> "VllmEngine":
        """See Engines."""
        policy = self._spec.failure_policy
        limit = max(policy.hang_timeout_seconds, policy.start_timeout_seconds)
        what = loading(self._spec, self._work, number)
        return VllmEngine(what, self._spec.training.seed, self._telemetry.alive, limit)


def loading(spec: DPOJobSpec, work: WorkDir, number: int) -> Loading:
    """What vLLM loads for a policy. number: of the round that trained it; 0 for the initial one. Raises TrainerError."""
    assert spec.iterative is not None
    wanted, files = spec.iterative.generation, policy_files(spec, work, number)
    adapter, rank = files.adapter, 0
    if adapter is None and spec.adapter.type is not AdapterType.NONE and spec.model.adapter is not None:
        adapter = work.model / adapters.FOLDER
    if adapter is not None:
        found = adapters.read(adapter, adapter.name)
        most = max(found.rank, *found.ranks.values(), 1)
        rank = next((each for each in RANKS if each >= most), 0)
        if not rank:
            raise invalid_configuration(
                f"spec.adapter.rank: vLLM has adapters of at most {RANKS[-1]}, found {most}; lower it, or use generation.engine transformers"
            )
    on_gpus = spec.training.device != "cpu" and (spec.training.device == "cuda" or has_gpu(os.environ))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return Loading(
        model=str(files.model),
        dtype=DTYPES[spec.training.precision],
        longest=PromptSet.open(work.prompts).longest + wanted.max_new_tokens,
        devices=gpus_of_process(os.environ, local_rank, wanted.tensor_parallel) if on_gpus else None,
        parallel=wanted.tensor_parallel,
        batch=wanted.micro_batch_size,
        adapter=None if adapter is None else str(adapter),
        rank=rank,
    )


class VllmEngine:
    """A policy in vLLM's process. See Engine."""

    def __init__(
        self, what: Loading, seed: int, alive: Callable[[], None] = lambda: None, limit: float | None = None
    ) -> None:
        """Loads the policy. alive: called about once a second while answers are made. limit: longest silence of vLLM, seconds. Raises TrainerError."""
        self._seed, self._alive, self._limit = seed, alive, limit
        # Not forked: vLLM must find a process in which no thread runs and no library is loaded.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, what, os.getpid()), name="vllm")
        self._process.start()
        theirs.close()
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def answer(
        self, prompts: Sequence[TokenIds], places: Sequence[int], samples: int, sampling: Sampling, round_number: int
    ) -> list[tuple[Answer, ...]]:
        """See Engine. Memory is vLLM's own affair: it keeps what does not fit waiting."""
        wanted = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            # Ends of the job's own list alone, whatever the model's files say.
            "stop_token_ids": list(sampling.end),
            "ignore_eos": True,
        }
        requests = [
            Request(prompt.tolist(), {**wanted, "seed": seed_of(self._seed, round_number, place, sample)})
            for prompt, place in zip(prompts, places, strict=True)
            for sample in range(samples)
        ]
        made = [
            Answer(np.array(ids, dtype=np.int32), np.array(logps, dtype=np.float32), ids[-1] in sampling.end)
            for ids, logps in self._ask(requests)
        ]
        return [tuple(made[i * samples : (i + 1) * samples]) for i in range(len(prompts))]

    def logps(self, prompts: Sequence[TokenIds], answers: Sequence[TokenIds]) -> npt.NDArray[np.float64]:
        """See Engine. The last id is drawn, as the only one allowed, so that a row is never longer than the model's positions."""
        requests = [
            Request(
                [*prompt.tolist(), *answer[:-1].tolist()],
                {"max_tokens": 1, "ignore_eos": True, "allowed_token_ids": [int(answer[-1])], "prompt_logprobs": 0},
                len(prompt),
            )
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return np.array([np.array(logps, dtype=np.float64).sum() for _, logps in self._ask(requests)])

    def close(self) -> None:
        """See Engine."""
        self._pipe.close()  # which ends the process
        self._process.join(_END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, requests: list[Request]) -> list[Made]:
        with contextlib.suppress(OSError):  # the process is gone; how it ended is said below
            self._pipe.send(requests)
        made: list[Made] = self._receive()
        return made

    def _receive(self) -> Any:
        """What vLLM's process answers. Raises TrainerError."""
        while True:
            try:
                # This process keeps answering the operator, so nobody else would find out.
                if not self._pipe.poll(self._limit):
                    self._process.kill()
                    raise TrainerError(
                        ExitCode.INTERNAL_ERROR,
                        f"vLLM's process gave no sign of life for {self._limit:.0f} s, and was killed; where it is that slow, raise failurePolicy.startTimeoutSeconds",
                    )
                kind, content = self._pipe.recv()
            except (EOFError, OSError) as error:
                self._process.join(_END_SECONDS)
                code = self._process.exitcode or 0
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                hint = "; out of memory, or killed on the node" if code == -signal.SIGKILL else "; the log says why"
                raise TrainerError(ExitCode.INTERNAL_ERROR, f"vLLM's process {how}{hint}") from error
            match kind:
                case "alive":
                    self._alive()
                case "made":
                    return content
                case "refused":
                    raise invalid_configuration(
                        f"spec.iterative.generation.engine: vLLM can't work with this policy: {content}. Change what it names, or use engine transformers"
                    )
                case "memory":
                    raise TrainerError(
                        ExitCode.INTERNAL_ERROR,
                        f"vLLM ran out of memory: {content}. Lower iterative.generation.microBatchSize or maxNewTokens, or raise tensorParallel",
                    )
                case _:
                    raise TrainerError(ExitCode.INTERNAL_ERROR, f"vLLM failed: {content}")
