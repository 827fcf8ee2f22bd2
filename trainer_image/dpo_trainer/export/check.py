"""Export check: the exported model, loaded by transformers or PEFT alone, must have the weights and log-probs of the trained one."""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.checkpoint.full import FullCheckpoint
from dpo_trainer.checkpoint.loop_state import Precision, Probe
from dpo_trainer.data.dataset import PairDataset, TokenPair
from dpo_trainer.model import quantized
from dpo_trainer.model.adapters import adapter_reader, load_adapters
from dpo_trainer.model.load import DTYPES, bare_model, causal_lm_of, load_whole
from dpo_trainer.model.weight_files import WeightFiles, have_the_models_names, read_when_used, stored_buffers
from dpo_trainer.pretrained.adapters import CONFIG
from dpo_trainer.pretrained.reward import HEAD
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.workdir import WorkDir

# Allowed difference of an answer's log-prob: absolute (nats) and relative tolerance. In float32 only the order of sums differs.
# bfloat16 has 8 bits and float16 11: a GPU and a CPU, or two shapes of a batch, round most of a model's numbers differently.
# There the exact comparison of the weights (check_weights) is the decisive one.
_EXACT, _ROUNDED = (1e-4, 1e-5), (0.1, 2e-2)
# A model of more bytes is checked without holding it in memory, by so many of the probe's pairs.
LARGE, PAIRS_OF_LARGE = 24 << 30, 2


def load_exported(
    base: Path, folder: Path, precision: str, *, four_bit: bool = False, classifier: bool = False
) -> nn.Module:
    """Load an export as a user would, in the training's precision, on the CPU. base: the base model of an adapter.

    A model above LARGE is never in memory as a whole: each of its modules reads its weights when it runs.
    four_bit: load the base in 4 bits, as qlora trained on it. classifier: a reward model was exported.
    Raises TrainerError BAD_EXPORT when weights are missing; transformers would initialize them randomly.
    """
    is_adapter = (folder / CONFIG).is_file()
    # The base of a reward model's adapter has no head that could be read.
    if not (four_bit or (classifier and is_adapter)):
        large = _load_large(base, folder, DTYPES[precision], is_adapter=is_adapter, classifier=classifier)
        if large is not None:
            return large.eval()
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


def _load_large(
    base: Path, folder: Path, dtype: torch.dtype, *, is_adapter: bool, classifier: bool
) -> nn.Module | None:
    """A large model, each module of which reads its weights when it runs.

    None when it is not large, when its files have other names than it, and with DoRA, which uses a layer's weights outside of that layer.
    """
    files = WeightFiles(base if is_adapter else folder)
    if files.elements * dtype.itemsize <= LARGE:
        return None
    model: nn.Module = bare_model(base if is_adapter else folder, dtype, runs=True, classifier=classifier)
    if not have_the_models_names(model, files.names):
        return None
    for name in stored_buffers(model):
        path, _, last = name.rpartition(".")
        model.get_submodule(path)._buffers[last] = files.tensor(name)
    read: Callable[[str], Tensor] = files.tensor
    if is_adapter:
        if json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("use_dora"):
            return None
        model, read = load_adapters(model, folder), adapter_reader(files.tensor, folder)
    read_when_used(model, lambda name: read(name).to(dtype))
    return model


def check_weights(
    model: nn.Module, checkpoint: FullCheckpoint, stored: Mapping[str, torch.dtype], precision: str
) -> None:
    """Compare every trained parameter of a loaded export with the checkpoint, bit for bit after rounding.

    stored: dtype of each parameter in the export. precision: of the loaded model.
    Raises TrainerError BAD_EXPORT.
    """
    own = dict(model.named_parameters())
    for name in checkpoint.manifest.parameters:
        expected = checkpoint.tensor(name, stored[name]).to(DTYPES[precision])
        found = own.get(name)
        if found is None or not torch.equal(_values(found).to(expected.dtype), expected):
            raise TrainerError(
                ExitCode.BAD_EXPORT,
                f"The export failed: expected parameter {name} as it is in the checkpoint, found "
                f"{'nothing' if found is None else 'other values'} after loading the exported folder.",
            )


def _values(parameter: nn.Parameter) -> Tensor:
    """A parameter's numbers, from its file where they are not in memory."""
    found: Tensor = vars(parameter)["stored"]() if parameter.is_meta else parameter.detach()
    return found


def _is_large(model: nn.Module) -> bool:
    """Whether it reads its weights when it runs."""
    return any(parameter.is_meta for parameter in model.parameters())


def check_probe(model: nn.Module, work: WorkDir, probe: Probe, stored: Collection[torch.dtype]) -> float:
    """Compare log-probs with those that the engine had at the checkpoint; returns the largest difference, nats.

    Of a large model only the shortest pairs are compared, in one pass: each reads all weights.
    stored: dtypes of the trained parameters in the export.
    Raises TrainerError BAD_EXPORT.
    """
    data = PairDataset.open(work.eval_data if probe.split == "eval" else work.train_data)
    exact = {*stored, DTYPES[probe.precision]} == {torch.float32}
    nats, share = _EXACT if exact else _ROUNDED
    worst = 0.0
    known = dict(zip(probe.pairs, probe.logps, strict=True))
    for index, found in _logps_of(model, data, list(known)).items():
        for answer, ours, saved in zip(("chosen", "rejected"), found, known[index], strict=True):
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
    found = _logps_of(model, data, range(min(pairs, len(data))))
    return Probe.of("train", list(found), list(found.values()), precision)


def _logps_of(model: nn.Module, data: PairDataset, indices: Sequence[int]) -> dict[int, list[float]]:
    """Log-probs of both answers by pair, nats; for a large model of the shortest pairs alone."""
    if not _is_large(model):
        return {index: answer_logps(model, data[index]).tolist() for index in indices}
    shortest = sorted(indices, key=lambda index: int(data.lengths[index].sum()))[:PAIRS_OF_LARGE]
    return dict(zip(shortest, answers_together(model, [data[index] for index in shortest]).tolist(), strict=True))


def _is_classifier(model: nn.Module) -> bool:
    return HEAD in causal_lm_of(model)._modules


def answers_together(model: nn.Module, pairs: Sequence[TokenPair]) -> Tensor:
    """As answer_logps, of several pairs in one pass: float64 [pairs, 2], nats. Padding follows the answers, where a causal model does not look."""
    if _is_classifier(model):
        # It scores one text at a time.
        return torch.stack([answer_logps(model, pair) for pair in pairs])
    rows = [np.concatenate([pair.prompt, answer]) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.from_numpy(row.astype(np.int64))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    sums = []
    for number, row in enumerate(rows):
        start = len(pairs[number // 2].prompt)
        of_answer = logits[number, start - 1 : len(row) - 1].float().log_softmax(-1)
        sums.append(of_answer.gather(1, ids[number, start : len(row), None]).double().sum())
    return torch.stack(sums).view(-1, 2)


def answer_logps(model: nn.Module, pair: TokenPair) -> Tensor:
    """Log-probs of a pair's two answers, without packing: float64 [2], nats; of a reward model the answers' rewards."""
    sums, classifier = [], _is_classifier(model)
    for answer in (pair.chosen, pair.rejected):
        ids = torch.from_numpy(np.concatenate([pair.prompt, answer]).astype(np.int64)[None])
        with torch.no_grad():
            whole = model(input_ids=ids).logits[0]
        if classifier:
            sums.append(whole[0].double())
            continue
        logits = whole[len(pair.prompt) - 1 : -1].float()
        targets = ids[0, len(pair.prompt) :, None]
        sums.append(logits.log_softmax(-1).gather(1, targets).double().sum())
    return torch.stack(sums)
