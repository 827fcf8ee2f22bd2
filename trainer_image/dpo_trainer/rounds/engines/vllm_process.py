"""vLLM's process: loads a policy and answers requests. The only module that imports vLLM."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from dpo_trainer.runtime.devices import EXPANDABLE
from dpo_trainer.runtime.errors import first_line
from dpo_trainer.runtime.parent import end_with_parent
from dpo_trainer.runtime.termination import is_out_of_memory

# Without GPUs: room for keys and values, where VLLM_CPU_KVCACHE_SPACE does not say. vLLM would take nearly all of the machine's memory.
_CPU_CACHE_BYTES = 2 << 30
# What vLLM raises while it loads a model, an adapter or sizes that it can't work with.
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


def serve(pipe: Connection, what: Loading, parent: int) -> None:
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
        pipe.send((kind_of(error, loaded=model is not None), f"{type(error).__name__}: {first_line(error, 500)}"))


def kind_of(error: Exception, *, loaded: bool) -> str:
    """Whether memory ran out, another attempt would fail in the same way, or neither is known: "memory", "refused" or "failed"."""
    said = str(error).lower()
    # A plain ValueError says that another process has the GPU's memory, or that none is left for keys and values.
    if is_out_of_memory(error) or ("memory" in said and not loaded):
        return "memory"
    # What was loaded has answered a token: what fails later is not the policy's fault for sure.
    # Kernels say in a plain RuntimeError which shapes they don't support.
    return "refused" if not loaded and (isinstance(error, _REFUSALS) or "support" in said) else "failed"


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
