"""Log-probs and gradients from the head in chunks are those of whole logits, for every kind of output layer."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.numerics.model.test_policy_logps import ARCHITECTURES
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

# Chunks of 1, 7 and all rows.
CHUNK_ROWS = (1, 7, None)


def chunks_and_whole() -> dict[str, dict[str, tuple[float, float]]]:
    """Architecture -> chunk -> largest difference of a log-prob (nats), and of a gradient as a share of the largest."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from dpo_trainer.batches.batch import collate
    from dpo_trainer.model.load import turn_off_dropout
    from dpo_trainer.model.policy import Policy
    from tests.numerics.jobs import VOCABULARY, some_pairs

    data, found = some_pairs(5), {}
    for name, settings in ARCHITECTURES.items():
        torch.manual_seed(1)
        config = AutoConfig.for_model(**settings)
        turn_off_dropout(config)
        for frozen in (False, True):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
            model.get_output_embeddings().requires_grad_(not frozen)
            policy = Policy(model)
            outcome = {}
            for rows in ("whole", *CHUNK_ROWS):
                policy.zero_grad()
                policy.head.chunk_bytes = None if rows in ("whole", None) else 4 * VOCABULARY * rows
                sums, sampled = policy(collate(data, range(5)), whole_logits=rows == "whole")
                (sums * torch.linspace(-1, 1, sums.numel()).view_as(sums)).sum().backward()
                gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
                outcome[rows] = (sums.detach(), gradient, sampled)
            whole = outcome.pop("whole")
            for rows, (sums, gradient, sampled) in outcome.items():
                assert gradient.shape == whole[1].shape
                assert torch.allclose(sampled, whole[2], rtol=1e-4, atol=1e-5), (sampled, whole[2])
                found.setdefault(name, {})[f"{rows} rows{', frozen' if frozen else ''}"] = (
                    (sums - whole[0]).abs().max().item(),
                    ((gradient - whole[1]).abs().max() / whole[1].abs().max()).item(),
                )
    return found


@pytest.fixture(scope="module")
def differences() -> dict[str, dict[str, tuple[float, float]]]:
    return on_ranks(1, chunks_and_whole)[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_probs_and_gradients_are_those_of_whole_logits(differences: dict[str, Any], name: str):
    assert len(differences[name]) == 2 * len(CHUNK_ROWS)
    for rows, (nats, share) in differences[name].items():
        assert nats < 1e-4, rows
        assert share < 1e-5, rows


def chunks_in_use() -> dict[str, bool]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from dpo_trainer.batches.batch import collate
    from dpo_trainer.model.policy import Policy
    from tests.numerics.jobs import some_pairs

    found = {}
    for name, settings in ARCHITECTURES.items():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
        policy = Policy(model)
        outputs: list[Any] = []
        model.get_output_embeddings().register_forward_hook(lambda _m, _i, output, to=outputs: to.append(output))
        with torch.no_grad():
            policy(collate(some_pairs(2), [0, 1]))
        # One call, which leaves log-probs and no logits.
        found[name] = [output.dim() for output in outputs] == [1]
    return found


def test_no_logits_leave_the_head_of_these_architectures():
    [found] = on_ranks(1, chunks_in_use)
    assert found == dict.fromkeys(ARCHITECTURES, True)


# Runs in a process of its own, because a peak can't be taken back: one long pair, a vocabulary of 128k.
LONG_PAIR = """
import json, sys
import numpy as np, torch
torch.set_num_threads(1)
from transformers import LlamaConfig, LlamaForCausalLM
from dpo_trainer.batches.batch import collate
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.model.policy import Policy

torch.manual_seed(0)
config = LlamaConfig(vocab_size=128_000, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                     max_position_embeddings=4096)
policy = Policy(LlamaForCausalLM(config).to(torch.float32))
policy.head.chunk_bytes = int(sys.argv[1]) or None
tokens = [np.arange(size, dtype=np.int32) for size in (1024, 1536, 1536)]
batch = collate(PairDataset.from_pairs([TokenPair(*tokens, 0)]), [0])

def peak():  # getrusage would count what the process was before it became this one
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

before = peak()
sums, _ = policy(batch)
sums[:, 0].sum().backward()
grown = peak() - before
print(json.dumps({"mib": grown / 1024, "logp": sums[0, 0].item(), "gradient": policy.model.lm_head.weight.grad.norm().item()}))
"""


@pytest.mark.exhaustive
def test_a_long_pair_with_a_large_vocabulary_needs_the_memory_of_a_chunk():
    def run(chunk_bytes: int) -> dict[str, float]:
        command = [sys.executable, "-c", LONG_PAIR, str(chunk_bytes)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    chunked, whole = run(64 << 20), run(0)
    assert chunked["logp"] == pytest.approx(whole["logp"], rel=1e-6)
    assert chunked["gradient"] == pytest.approx(whole["gradient"], rel=1e-4)
    # 3,072 rows of logits are 1,500 MiB; memory freed after loading holds a part of them.
    assert whole["mib"] > 1000
    assert chunked["mib"] < whole["mib"] / 2
