"""The engine `vllm`: its offline class in a process of its own, which no other module imports.

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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.model import AdapterType
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.data.dataset import TokenIds
from dpo_trainer.data.prompts import PromptSet
from dpo_trainer.pretrained import adapters
from dpo_trainer.rounds.engines.engine import seed_of
from dpo_trainer.rounds.identity import policy_files
from dpo_trainer.rounds.units import Answer, Sampling
from dpo_trainer.runtime.devices import EXPANDABLE, gpus_of_process, has_gpu
from dpo_trainer.runtime.errors import TrainerError, first_line, invalid_configuration
from dpo_trainer.runtime.parent import end_with_parent
from dpo_trainer.runtime.termination import is_out_of_memory
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Ranks of adapters that vLLM has kernels for; a smaller adapter is padded to the next of them.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Without GPUs: room for keys and values, where VLLM_CPU_KVCACHE_SPACE does not say. vLLM would take nearly all of the machine's memory.
_CPU_CACHE_BYTES = 2 << 30
# Seconds for vLLM's process to end by itself.
_END_SECONDS = 10.0
# What vLLM raises for a model, an adapter or sizes that it can't work with.
_REFUSALS = (ValueError, NotImplementedError, AssertionError, KeyError, TypeError, AttributeError, ImportError)


@dataclass(frozen=True)
class Loading:
    """What vLLM loads. longest: most tokens of a prompt with its answer. devices: CUDA_VISIBLE_DEVICES; None for CPUs.

    parallel: GPUs that share the model. batch: most answers at once; None: what vLLM takes. adapter: a PEFT folder. rank: of RANKS, for it.
    """

    model: str
    dtype: str
    longest: int
    devices: str | None
    parallel: int = 1
    batch: int | None = None
    adapter: str | None = None
    rank: int = 0


class Request(NamedTuple):
    """Ids to continue, and settings of SamplingParams. score: that the log-probs of the ids from this place on are wanted, too."""

    ids: list[int]
    params: dict[str, Any]
    score: int | None = None


# Ids of an answer, and their log-probs; of a scored request the log-probs of the asked ids come first.
Made = tuple[list[int], list[float]]


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
        return VllmEngine(loading(self._spec, self._work, number), self._spec.training.seed, self._telemetry.alive)


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

    def __init__(self, what: Loading, seed: int, alive: Callable[[], None] = lambda: None) -> None:
        """Loads the policy. alive: called at least once a second while answers are made. Raises TrainerError."""
        self._seed, self._alive = seed, alive
        # Not forked: vLLM must find a process in which no thread runs and no library is loaded.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, what, os.getpid()), name="vllm")
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


def _serve(pipe: Connection, what: Loading, parent: int) -> None:
    """vLLM's process: load, then answer requests until the pipe is closed."""
    end_with_parent(parent, signal.SIGKILL)
    _settle(what)
    model = None
    try:
        model = _Model(what, lambda: pipe.send(("alive", None)))
        pipe.send(("made", None))
        while True:
            requests = pipe.recv()
            pipe.send(("made", model.run(requests)))
    except (EOFError, BrokenPipeError):
        if model is not None:
            model.close()
        os._exit(0)  # an orderly end takes many seconds, and there is nothing to save
    except Exception as error:
        import traceback

        traceback.print_exc()
        pipe.send((_kind(error), f"{type(error).__name__}: {first_line(error, 500)}"))


def _kind(error: Exception) -> str:
    """Whether memory ran out, another attempt would fail in the same way, or neither is known."""
    if is_out_of_memory(error):
        return "memory"
    # Kernels say in a plain RuntimeError which shapes they don't support.
    return "refused" if isinstance(error, _REFUSALS) or "support" in str(error).lower() else "failed"


def _settle(what: Loading) -> None:
    """The environment of vLLM's process, before it is imported."""
    os.environ |= {
        # In this process, which ends with its parent; those of tensor parallelism end with this one.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    # Without a tokenizer its warm-up of chat templates would warn with a traceback.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # What the launcher sets for torch: memory that GPUs can't show one another.
    for name, value in EXPANDABLE.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    if what.devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = what.devices
    else:
        # OMP_NUM_THREADS counts, as for the trainer.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


class _Model:
    """vLLM with a policy, in vLLM's process."""

    def __init__(self, what: Loading, alive: Callable[[], None]) -> None:
        from vllm import LLM

        options: dict[str, Any] = {} if what.batch is None else {"max_num_seqs": what.batch}
        if what.devices is None:
            options["enforce_eager"] = True
            if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
                options["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
        self._adapter: Any = None
        if what.adapter is not None:
            from vllm.lora.request import LoRARequest

            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": what.rank}
            self._adapter = LoRARequest(Path(what.adapter).name, 1, what.adapter)
        self._alive = alive
        self._llm = LLM(
            what.model,
            skip_tokenizer_init=True,
            dtype=what.dtype,
            max_model_len=what.longest,
            tensor_parallel_size=what.parallel,
            load_format="safetensors",
            trust_remote_code=False,
            # None of the model's own settings of sampling.
            generation_config="vllm",
            # Of the model's distribution itself: at temperature 1 among all tokens, before top-p.
            logprobs_mode="raw_logprobs",
            **options,
        )
        # What its kernels can't compute shows with the first token.
        self.run([Request([0], {"max_tokens": 1})])

    def close(self) -> None:
        """End the processes of tensor parallelism, so that their memory is free for the next policy."""
        self._llm.llm_engine.engine_core.shutdown()

    def run(self, requests: list[Request]) -> list[Made]:
        """Answers in the order of the requests."""
        from vllm import SamplingParams

        params = [SamplingParams(logprobs=0, detokenize=False, **request.params) for request in requests]
        prompts: Any = [{"prompt_token_ids": request.ids} for request in requests]
        self._llm.enqueue(prompts, params, lora_request=self._adapter, use_tqdm=False)
        found: list[Any] = []
        said = time.monotonic()
        while self._llm.llm_engine.has_unfinished_requests():
            found += [each for each in self._llm.llm_engine.step() if each.finished]
            if time.monotonic() - said >= 1.0:
                self._alive()
                said = time.monotonic()
        # Numbers that vLLM counts in the order of the requests; they end in any order.
        found.sort(key=lambda each: int(each.request_id))
        return [_made(each, request) for each, request in zip(found, requests, strict=True)]


def _made(output: Any, request: Request) -> Made:
    answer = output.outputs[0]
    ids = list(answer.token_ids)
    logps = [each[token].logprob for token, each in zip(ids, answer.logprobs, strict=True)]
    if request.score is None:
        return ids, logps
    scored = zip(request.ids[request.score :], output.prompt_logprobs[request.score :], strict=True)
    return ids, [*(each[token].logprob for token, each in scored), *logps]
