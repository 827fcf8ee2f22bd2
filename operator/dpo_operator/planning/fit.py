"""Warning after prepare when the predicted memory of a rank exceeds its limit."""

from dataclasses import replace

from dpo_operator.api import conditions as c
from dpo_operator.api.models import hardware
from dpo_operator.api.quantity import gibibytes, to_bytes
from dpo_operator.api.reports import DatasetReport
from dpo_operator.api.sweep.grid import largest_leg
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.planning.actions import Event
from dpo_operator.sizing import proposal
from dpo_operator.sizing.work import Pairs

# Relative error of the estimate that is tolerated before warning.
TOLERANCE = 0.05


def predicted_not_to_fit(spec: DPOJobSpec, found: DatasetReport | None, gpu_memory: float | None) -> Event | None:
    """The warning, or None when the job is predicted to fit or too little is known to tell.

    found: prepare's report. gpu_memory: bytes per GPU, None when not configured. A job without GPUs is compared with the memory
    limit of its training pods. The warning never blocks training, because the prediction may be wrong.
    """
    if found is None or found.model is None or found.tokens is None:
        return None
    if spec.gpus_per_node:
        limit, device, what = gpu_memory, hardware.GPUS["h100"], "the memory of a GPU"
    else:
        pod = spec.pod.resources.limits.get("memory")
        limit, device, what = None if pod is None else to_bytes(pod), hardware.cpu(), "spec.pod.resources.limits.memory"
    if limit is None:
        return None
    pairs = Pairs.of(spec, found.tokens, found.train_pairs)
    job = proposal.Job(largest_leg(spec), found.model, pairs, replace(device, memory=limit))
    memory = job.memory()
    if memory.peak <= limit * (1 + TOLERANCE):
        return None
    change = proposal.smallest_change(job)
    hint = f"; smallest change predicted to fit: {proposal.lines(change).replace(chr(10), ', ')}" if change else ""
    largest = sorted(memory.parts.items(), key=lambda part: -part[1])[:3]
    return Event(
        "Warning",
        c.PREDICTED_NOT_TO_FIT,
        f"Each rank is predicted to need {gibibytes(memory.peak)} ({memory.peak_phase}; most of it "
        f"{', '.join(f'{name} {gibibytes(size)}' for name, size in largest)}), and {what} is {gibibytes(limit)}. Training starts "
        f"anyway{hint}.",
    )
