"""Start-up checks: partitions, log-prob path, packing, resumed checkpoint, loss of the first step."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.batches.batch import collate
from dpo_trainer.batches.packing import tokens_of
from dpo_trainer.checkpoint.loading import Restored
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.engine.engine import Engine
from dpo_trainer.losses.objective import Objective
from dpo_trainer.model.attention import kernels
from dpo_trainer.model.attention.sdpa import UnsupportedAttention
from dpo_trainer.model.load import DTYPES
from dpo_trainer.model.reward import RewardModel
from dpo_trainer.runtime.errors import invalid_configuration
from dpo_trainer.telemetry import Telemetry

# How far the first step's loss may be from ln 2 and its reward margin from 0. bf16 rounds log-probs of hundreds of nats
# differently in batches of different shape.
_FIRST_STEP_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}

# Smallest ratio of tokens, plain packing to shared prompts, at which sharing pays off.
_SHARING_PAYS = 1.02

# Tokens of an answer by which packed pairs are compared with rows, in addition to the whole answer.
_BEGINNING = 8


def log_partitions(engine: Engine, ranks: Ranks, telemetry: Telemetry) -> None:
    """Show that no rank holds the whole model."""
    reports = ranks.gather(engine.partition_report())
    held = [report["held"] for report in reports]
    telemetry.activity(
        f"ZeRO-3: {ranks.world_size} ranks hold {min(held):,} to {max(held):,} of {reports[0]['total']:,} parameters each; "
        f"this rank {held[ranks.rank]:,}, of which {reports[ranks.rank]['trainable']:,} are trained"
    )
    if four_bit := reports[0]["four_bit"]:
        size = reports[0]["four_bit_bytes"]
        telemetry.activity(
            f"4-bit base: every rank holds {four_bit:,} more in {size / 2**20:,.1f} MiB, {size / (2 * four_bit):.2f} of 16 bits"
        )


def check_logits_path(engine: Engine, data: PairDataset, precision: str, telemetry: Telemetry) -> None:
    """Compare a short pair's log-probs with those from the model's own logits; use the latter if they differ.

    Collective. This detects models that post-process their logits. A short pair, because logits
    of every position of a long pair could take more memory than training does.
    """
    some = _with_beginnings(data)
    batch = collate(some, [len(some) - 1])
    engine.train(False)
    with torch.no_grad(), _trial(engine):
        short = engine.score(batch).answers.flatten()
        whole = engine.score(batch, whole_logits=True).answers.flatten()
    engine.train(True)
    share = 1e-4 if precision == "fp32" else 2e-2
    same = torch.allclose(short, whole, rtol=share, atol=share, equal_nan=True)
    if engine.any_rank(not same):
        if isinstance(engine.module, RewardModel):
            raise invalid_configuration(
                "spec.method.name: reward-model: this architecture's classifier does not score the state of the last token alone: expected "
                f"{whole.tolist()}, found {short.tolist()}; use another model"
            )
        engine.module.whole_logits = True
        telemetry.warning(
            "WholeLogits",
            f"this architecture's log-probs need the logits of every token, which takes more memory and time: expected "
            f"{whole.tolist()}, found {short.tolist()} from answer tokens alone",
            once=True,
        )


def choose_layout(engine: Engine, data: PairDataset, spec: DPOJobSpec, telemetry: Telemetry) -> None:
    """Pack pairs as the job wants it, if that gives the log-probs of padded rows. Collective.

    Whatever an architecture does in addition to attention (recurrent layers, positions of its own) shows in this comparison.
    """
    wanted = spec.training.packing
    if wanted == "off":
        return
    if wanted == "shared" and not _sharing_pays(data):
        wanted = "plain"
        if telemetry.rank == 0:
            telemetry.activity(
                "pairs are packed with a prompt for each answer: sharing short prompts would save next to nothing"
            )
    policy, reason = engine.module, "its attention has no SDPA form that can be replaced"
    if spec.model.attention != "eager" and policy.pack(wanted, _kernel(engine, spec, telemetry)):
        some = _with_beginnings(data)
        engine.train(False)
        with torch.no_grad(), _trial(engine):
            rows = engine.score(collate(some, range(len(some)))).answers
            try:
                packed = engine.score(collate(some, range(len(some)), layout=wanted)).answers
            except UnsupportedAttention as error:
                packed, reason = torch.full_like(rows, torch.nan), str(error)
            else:
                reason = f"expected log-probs {rows[0].tolist()}, found {packed[0].tolist()} in packed pairs"
        engine.train(True)
        share = 1e-4 if spec.training.precision == "fp32" else 2e-2
        if not engine.any_rank(not torch.allclose(rows, packed, rtol=share, atol=share, equal_nan=False)):
            return
        policy.layout = "off"
    telemetry.warning(
        "NotPacked", f"this model's pairs are trained in padded rows, which is slower: {reason}", once=True
    )


def _trial(engine: Engine) -> AbstractContextManager[None]:
    """A reward model's head is zero before the first step: in trials another stands in for it."""
    return engine.module.trial() if isinstance(engine.module, RewardModel) else nullcontext()


def _kernel(engine: Engine, spec: DPOJobSpec, telemetry: Telemetry) -> kernels.Kernel:
    """What computes the attention of packed pairs. Collective."""
    device = engine.world.device
    named: dict[str, kernels.Kernel] = {"flex": "flex", "sdpa": "sdpa"}
    wanted = named.get(spec.model.attention) or kernels.preferred(device, DTYPES[spec.training.precision])
    if wanted == "sdpa" or device.type == "cpu":
        return wanted
    problem = engine.module.kernel_problem(wanted, device)
    if not engine.any_rank(problem is not None):
        return wanted
    code = {"flex": "NoFlexAttention", "varlen": "NoVarlenAttention"}[wanted]
    text = f"packed pairs go through SDPA, pair by pair, which is slower: {problem or 'it failed on another rank'}"
    telemetry.warning(code, text, once=True)
    return "sdpa"


def _sharing_pays(data: PairDataset) -> bool:
    """Whether sharing prompts leaves out enough tokens to make up for attention in two parts, of which one needs a mask."""
    shared, plain = (int(tokens_of(data.lengths, layout).sum()) for layout in ("shared", "plain"))
    return plain > _SHARING_PAYS * shared


def _with_beginnings(data: PairDataset) -> PairDataset:
    """The two shortest pairs, which fit into memory when any do, and again with the beginnings of their answers alone.

    Leakage between packed pairs is largest in the first tokens of an answer; in a sum over hundreds of tokens it would be
    within bf16's tolerance.
    """
    pairs = [data[int(index)] for index in data.lengths.sum(axis=1).argsort(kind="stable")[:2]]
    begun = [replace(p, chosen=p.chosen[:_BEGINNING], rejected=p.rejected[:_BEGINNING]) for p in pairs]
    return PairDataset.from_pairs(pairs + begun)


def check_first_step(
    metrics: dict[str, float], first_loss: float | None, objective: Objective, precision: str, telemetry: Telemetry
) -> None:
    """Before the first update policy and reference are the same model: the margin is 0, and DPO's loss ln 2.

    first_loss: what the loss is then, for the job's method; None for methods without a reference, which start anywhere.
    """
    if first_loss is None:
        return
    tolerance = _FIRST_STEP_TOLERANCE[precision]
    telemetry.initial_loss(first_loss)
    if abs(metrics["loss"] - first_loss) > tolerance * max(1.0, abs(first_loss)):
        telemetry.warning(
            "FirstStepLoss",
            f"expected a first loss of {first_loss:.6f}{' = ln 2' if math.isclose(first_loss, math.log(2)) else ''} ± {tolerance}, found {metrics['loss']:.6f}: the reference is "
            "not the model that training starts from, or the model is not deterministic",
            once=True,
        )
    if not objective.starts_level:
        return
    telemetry.initial_margin(metrics["rewards/margins"])
    if abs(metrics["rewards/margins"]) > tolerance:
        telemetry.warning(
            "FirstStepMargin",
            f"expected a first reward margin of 0 ± {tolerance}, found {metrics['rewards/margins']:.6f}",
            once=True,
        )


def log_restored(restored: Restored, telemetry: Telemetry) -> None:
    """Warn of newer checkpoints that could not be used, and of one that is used without a record of it."""
    for reason in restored.refused:
        telemetry.warning("CheckpointRefused", reason, once=True)
    if restored.doubt:
        telemetry.warning("CheckpointNotRecorded", restored.doubt, once=True)
