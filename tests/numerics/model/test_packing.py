"""Packed pairs, and pairs that share their prompt, give the numbers of padded rows: log-probs, losses and gradients."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.family import Arrangement, examples, losses_and_gradients, two_models
from tests.numerics.jobs import a_job, make_model, some_pairs, train_on_rank
from tests.numerics.losses.test_methods_over_ranks import METHODS
from tests.numerics.model.test_policy_logps import ARCHITECTURES, GATED
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

WINDOWED = {**GATED, "model_type": "mistral", "sliding_window": 6}
PACKED = {
    **{name: ARCHITECTURES[name] for name in ARCHITECTURES if name.partition(",")[0] != "bloom"},
    "mistral, a window shorter than the answers": WINDOWED,
    # Every second layer has a window. Capped so low that it changes every score.
    "gemma2, capped scores": {**GATED, "model_type": "gemma2", "head_dim": 8, "attn_logit_softcapping": 0.5, "sliding_window": 6},
    "gemma3, windows and norms of heads": {**GATED, "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 6},
    "gpt-oss, sinks": {**GATED, "model_type": "gpt_oss", "head_dim": 8, "num_local_experts": 4, "sliding_window": 6},
}  # fmt: skip
LORA = {"type": "lora", "rank": 4, "alpha": 8, "targetModules": ["q_proj", "v_proj"]}


def one_sided(data: PairDataset) -> PairDataset:
    """The same pairs; every third has lost its chosen answer, every fourth its rejected one."""
    nothing = data[0].chosen[:0]
    return PairDataset.from_pairs(
        TokenPair(p.prompt, nothing if i % 3 == 2 else p.chosen, nothing if i % 4 == 3 else p.rejected, p.row)
        for i, p in enumerate(data[i] for i in range(len(data)))
    )


def packed_and_rows() -> dict[str, dict[str, tuple[float, float]]]:
    """Architecture -> layout -> largest difference of a log-prob (nats), and of a gradient as a share of the largest."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from dpo_trainer.batches.batch import collate
    from dpo_trainer.model.load import turn_off_dropout
    from dpo_trainer.model.policy import Policy

    data, found = one_sided(some_pairs(7)), {}
    for name, settings in PACKED.items():
        torch.manual_seed(1)
        config = AutoConfig.for_model(**settings)
        turn_off_dropout(config)
        policy = Policy(AutoModelForCausalLM.from_config(config, dtype=torch.float32).train())
        outcome = {}
        for layout in ("off", "plain", "shared"):
            assert policy.pack(layout), f"{name} can't be packed"
            policy.zero_grad()
            sums, _ = policy(collate(data, range(7), layout=layout, score_prompts=True))
            # A weight for each sum, so that errors can't cancel.
            (sums * torch.linspace(-1, 1, sums.numel()).view_as(sums)).sum().backward()
            gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
            outcome[layout] = (sums.detach(), gradient)
        rows = outcome.pop("off")
        found[name] = {
            layout: (
                (sums - rows[0]).abs().max().item(),
                ((gradient - rows[1]).abs().max() / rows[1].abs().max()).item(),
            )
            for layout, (sums, gradient) in outcome.items()
        }
    return found


@pytest.fixture(scope="module")
def differences() -> dict[str, dict[str, tuple[float, float]]]:
    return on_ranks(1, packed_and_rows)[0]


@pytest.mark.parametrize("layout", ["plain", "shared"])
@pytest.mark.parametrize("name", PACKED)
def test_log_probs_and_gradients_are_those_of_rows(differences: dict[str, Any], name: str, layout: str):
    nats, share = differences[name][layout]
    assert nats < 1e-4
    assert share < 1e-5


def answers_and_rows() -> dict[str, tuple[bool, float]]:
    """Architecture -> whether greedy answers after packing are those before, and the largest difference of a log-prob of rows; nats."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from dpo_trainer.batches.batch import collate
    from dpo_trainer.model.policy import Policy

    data, found = one_sided(some_pairs(7)), {}
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    for name in ("gemma2, capped scores", "gpt-oss, sinks"):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**PACKED[name]), dtype=torch.float32).eval()
        policy, outcome = Policy(model), []
        for _ in range(2):
            settings = {"attention_mask": (ids > 0).long(), "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
            with torch.no_grad():
                sums = policy(collate(data, range(7)))[0]
                outcome.append((model.generate(ids, eos_token_id=None, **settings), sums))
            assert policy.pack("shared")
            policy.layout = "off"
        (before, rows), (after, again) = outcome
        found[name] = (torch.equal(before, after), (again - rows).abs().max().item())
    return found


def test_changed_scores_are_kept_where_rows_are_not_packed():
    [found] = on_ranks(1, answers_and_rows)
    assert len(found) == 2
    for same, nats in found.values():
        assert same
        assert nats < 1e-4


def flex_and_rows() -> dict[str, float]:
    """Architecture -> largest difference of a log-prob by FlexAttention from padded rows; nats. Without gradients, on a CPU."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from dpo_trainer.batches.batch import collate
    from dpo_trainer.model.attention.kernels import NAMES
    from dpo_trainer.model.load import turn_off_dropout
    from dpo_trainer.model.policy import Policy

    data, found = one_sided(some_pairs(7)), {}
    for name in ("llama", "qwen2, attention bias", "mistral, a window shorter than the answers"):
        torch.manual_seed(1)
        config = AutoConfig.for_model(**PACKED[name])
        turn_off_dropout(config)
        policy = Policy(AutoModelForCausalLM.from_config(config, dtype=torch.float32).train())
        with torch.no_grad():
            rows = policy(collate(data, range(7)))[0]
            assert policy.pack("shared", "flex")
            assert policy.model.config._attn_implementation == NAMES["flex"]
            packed = [policy(collate(data, range(7), layout=layout))[0] for layout in ("plain", "shared")]
        found[name] = max((sums - rows).abs().max().item() for sums in packed)
    return found


def test_flex_attention_gives_the_log_probs_of_rows():
    [found] = on_ranks(1, flex_and_rows)
    assert len(found) == 3
    assert max(found.values()) < 1e-4, found


def layouts_chosen(root: Path) -> list[str]:
    """What is chosen for pairs with a prompt of one token, and for such with one as long as an answer."""
    import torch

    from dpo_operator.api.types import DPOJob
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.engine.engine import Engine
    from dpo_trainer.telemetry import Telemetry
    from dpo_trainer.training.startup_checks import choose_layout

    spec = DPOJob.model_validate(a_job()).spec
    engine = Engine(spec, root / "model", join_world("cpu"))
    telemetry, chosen = Telemetry("train", 1, WorkDir(root)), []
    for prompt in (1, 40):
        tokens = [torch.arange(3, 3 + size).numpy().astype("int32") for size in (prompt, 40, 41)]
        choose_layout(engine, PairDataset.from_pairs([TokenPair(*tokens, 0)]), spec, telemetry)
        chosen.append(engine.module.layout)
    telemetry.close()
    return chosen


def test_short_prompts_are_not_shared(tmp_path: Path):
    on_ranks(1, make_model, tmp_path / "model")
    assert on_ranks(1, layouts_chosen, tmp_path) == [["plain", "shared"]]


# Rows with all their logits come first; all others have to give the same.
ARRANGEMENTS = {
    "rows": Arrangement("off"),
    "plain": Arrangement("plain"),
    "shared": Arrangement("shared"),
    "shared, in chunks": Arrangement("shared", chunk_rows=5),
    "rows, in chunks of one": Arrangement("off", chunk_rows=1),
}


# CI runs each method on two ranks with tied embeddings; on one rank with untied ones one method of each family.
FAMILIES = ("dpo", "kto, unpaired", "orpo", "simpo")
CASES = [
    pytest.param(
        world,
        name,
        id=f"{world[0]} ranks, tied {world[1]}, {name}",
        marks=[] if world == (2, True) or (world == (1, False) and name in FAMILIES) else [pytest.mark.exhaustive],
    )
    for world in ((1, False), (1, True), (2, False), (2, True))
    for name in METHODS
]


@pytest.fixture(scope="module")
def arranged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[tuple[int, bool]], dict[str, dict[str, Any]]]:
    """Of a number of ranks and a kind of head: arrangement -> method -> loss and gradient of a step in micro-batches of
    three, the last one incomplete. It is computed once, for the methods that tests were selected for."""
    callspecs = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]

    @cache
    def of(world: tuple[int, bool]) -> dict[str, dict[str, Any]]:
        names = {c.params["name"] for c in callspecs if c and c.params.get("world") == world}
        root = tmp_path_factory.mktemp("arrangements")
        on_ranks(1, partial(two_models, tied=world[1]), root / "policy", root / "reference")
        data = {"pairs": examples("=" * 11), "unpaired": examples("+-+++-++--+"), "mixed": examples("=-=+==+--=+")}
        found = on_ranks(
            world[0],
            losses_and_gradients,
            {name: METHODS[name] for name in METHODS if name in names},
            data,
            root / "policy",
            root / "reference",
            list(ARRANGEMENTS.values()),
            timeout=600,
        )
        return dict(zip(ARRANGEMENTS, found[0], strict=True))

    return of


@pytest.mark.parametrize(("world", "name"), CASES)
def test_no_methods_loss_or_gradient_depends_on_layout_or_chunks(arranged: Any, world: tuple[int, bool], name: str):
    found = arranged(world)
    rows = found["rows"][name]
    largest = max(abs(gradient).max() for gradient in rows["gradient"].values())
    for arrangement in list(ARRANGEMENTS)[1:]:
        other = found[arrangement][name]
        assert other["loss"] == pytest.approx(rows["loss"], abs=1e-5, rel=1e-6), arrangement
        for parameter, gradient in rows["gradient"].items():
            difference = abs(other["gradient"][parameter] - gradient).max()
            assert difference <= 1e-4 * max(1.0, largest), (arrangement, parameter)


@pytest.mark.parametrize(
    "adapter", [pytest.param(None, id="full"), pytest.param(LORA, id="lora", marks=pytest.mark.exhaustive)]
)
def test_a_run_on_two_ranks_with_checkpointing_has_the_same_curve(tmp_path: Path, adapter: dict[str, Any] | None):
    curves = {}
    for layout in ("off", "shared"):
        work = WorkDir(tmp_path / layout)
        some_pairs(13).save(work.train_data)
        on_ranks(1, make_model, work.model)
        document = a_job(maxSteps=6, gradientCheckpointing=True, packing=layout, microBatchSize=3)
        if adapter:
            document["spec"]["adapter"] = adapter
        run = on_ranks(2, train_on_rank, document, work.root)[0]
        assert run["warnings"] == []
        curves[layout] = run["steps"]
    for rows, packed in zip(curves["off"], curves["shared"], strict=True):
        assert packed["loss"] == pytest.approx(rows["loss"], abs=1e-5)
        assert packed["grad_norm"] == pytest.approx(rows["grad_norm"], rel=1e-4)


# Models that are not packed: positions without ids, keys that the model itself leaves out (in long texts alone), convolutions.
NOT_PACKED = {
    "bloom": ARCHITECTURES["bloom, no position ids"],
    "doge": {**GATED, "model_type": "doge"},
    "lfm2": {**GATED, "model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
}


def make_architecture(folder: Path, settings: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings)).save_pretrained(folder)


@pytest.mark.parametrize(("name", "precision"), [("bloom", "fp32"), ("doge", "fp32"), ("lfm2", "bf16")])
def test_a_model_that_cannot_be_packed_is_trained_in_rows_with_a_warning(tmp_path: Path, name: str, precision: str):
    work = WorkDir(tmp_path)
    some_pairs(9).save(work.train_data)
    on_ranks(1, make_architecture, work.model, NOT_PACKED[name])
    run = on_ranks(2, train_on_rank, a_job(maxSteps=2, precision=precision), tmp_path)[0]
    assert run["warnings"] == ["NotPacked"]
    assert run["steps"][0]["loss"] == pytest.approx(0.693147, abs=1e-4 if precision == "fp32" else 1e-2)
