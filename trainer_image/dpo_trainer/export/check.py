"""Export check: the exported model, loaded by transformers or PEFT alone, must have the weights and log-probs of the trained one."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.checkpoint.full import FullCheckpoint
from dpo_trainer.checkpoint.loop_state import Precision, Probe
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.model import quantized
from dpo_trainer.model.adapters import load_adapters
from dpo_trainer.model.load import DTYPES, load_whole
from dpo_trainer.pretrained.reward import HEAD
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.workdir import WorkDir

# Allowed difference of an answer's log-prob: absolute (nats) and relative tolerance. In float32 only the order of sums differs.
# bfloat16 has 8 bits and float16 11: a GPU and a CPU, or two shapes of a batch, round most of a model's numbers differently.
# There the exact comparison of the weights (check_weights) is the decisive one.
_EXACT, _ROUNDED = (1e-4, 1e-5), (0.1, 2e-2)


def load_exported(
    base: Path, folder: Path, precision: str, *, four_bit: bool = False, classifier: bool = False
) -> nn.Module:
    """Load an export as a user would, in the training's precision, on the CPU. base: the base model of an adapter.

    four_bit: load the base in 4 bits, as qlora trained on it. classifier: a reward model was exported.
    Raises TrainerError BAD_EXPORT when weights are missing; transformers would initialize them randomly.
    """
    is_adapter = (folder / "adapter_config.json").is_file()
    options = quantized.loading_options(DTYPES[precision], torch.device("cpu")) if four_bit else {}
    model: nn.Module
    source = base if is_adapter else folder
    model, missing = load_whole(source, DTYPES[precision], classifier=classifier, **options)
    # The head is in the adapter's file.
    if missing := missing - ({f"{HEAD}.weight"} if is_adapter and classifier else set()):
        raise TrainerError(ExitCode.BAD_EXPORT, f"The export failed: no weights were written for {min(missing)}.")
    quantized.keep_unpacked(model)
    if is_adapter:
        model = load_adapters(model, folder)
    return model.eval()


def check_weights(
    model: nn.Module, checkpoint: FullCheckpoint, stored: Mapping[str, torch.dtype], precision: str
) -> None:
    """Compare every trained parameter of a loaded export with the checkpoint, bit for bit after rounding.

    stored: dtype of each parameter in the export. precision: of the loaded model.
    Raises TrainerError BAD_EXPORT.
    """
    own = dict(model.named_parameters())
    for name in checkpoint.manifest.parameters:
        expected = checkpoint.tensor(name).to(stored[name]).to(DTYPES[precision])
        found = own.get(name)
        if found is None or not torch.equal(found.detach().to(expected.dtype), expected):
            raise TrainerError(
                ExitCode.BAD_EXPORT,
                f"The export failed: expected parameter {name} as it is in the checkpoint, found "
                f"{'nothing' if found is None else 'other values'} after loading the exported folder.",
            )


def check_probe(model: nn.Module, work: WorkDir, probe: Probe, stored: Collection[torch.dtype]) -> float:
    """Compare log-probs with those that the engine had at the checkpoint; returns the largest difference, nats.

    stored: dtypes of the trained parameters in the export.
    Raises TrainerError BAD_EXPORT.
    """
    data = PairDataset.open(work.eval_data if probe.split == "eval" else work.train_data)
    exact = {*stored, DTYPES[probe.precision]} == {torch.float32}
    nats, share = _EXACT if exact else _ROUNDED
    worst = 0.0
    for index, expected in zip(probe.pairs, probe.logps, strict=True):
        found = answer_logps(model, data[index])
        for answer, ours, saved in zip(("chosen", "rejected"), found.tolist(), expected, strict=True):
            theirs = math.nan if saved is None else saved
            difference = abs(ours - theirs)
            worst = max(worst, difference)
            if not difference <= nats + share * abs(theirs):
                raise TrainerError(
                    ExitCode.BAD_EXPORT,
                    f"The export failed: for the {answer} answer of {probe.split} pair {index}, expected a log-prob of "
                    f"{theirs:.6f} (the trained policy's), found {ours:.6f} after loading the exported folder.",
                )
    return worst


def make_probe(model: nn.Module, work: WorkDir, precision: Precision, pairs: int = 8) -> Probe:
    """Log-probs of the first training pairs under a loaded model, as reference for another form of it, see check_probe."""
    data = PairDataset.open(work.train_data)
    indices = range(min(pairs, len(data)))
    return Probe.of("train", indices, [answer_logps(model, data[index]).tolist() for index in indices], precision)


def answer_logps(model: nn.Module, pair: TokenPair) -> Tensor:
    """Log-probs of a pair's two answers, without packing: float64 [2], nats; of a reward model the answers' rewards."""
    sums = []
    for answer in (pair.chosen, pair.rejected):
        ids = torch.from_numpy(np.concatenate([pair.prompt, answer]).astype(np.int64)[None])
        with torch.no_grad():
            whole = model(input_ids=ids).logits[0]
        if whole.dim() == 1:
            sums.append(whole[0].double())
            continue
        logits = whole[len(pair.prompt) - 1 : -1].float()
        targets = ids[0, len(pair.prompt) :, None]
        sums.append(logits.log_softmax(-1).gather(1, targets).double().sum())
    return torch.stack(sums)
