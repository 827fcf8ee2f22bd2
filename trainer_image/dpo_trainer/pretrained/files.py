"""The model's files: which are needed, whether they fit together, and getting them into the work folder.

Weights are read as safetensors and nothing else: a pickle runs code when it is opened. Code that comes with a model is
never copied and never run.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime.errors import TrainerError, input_not_found, invalid_configuration, volume_error
from dpo_trainer.runtime.files import sha256
from dpo_trainer.sources import hub
from dpo_trainer.sources.cache import Cache
from dpo_trainer.sources.kinds import FileSource, HubSource, Source

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_VOCABULARIES = ({"tokenizer.json"}, {"tokenizer.model"}, {"spiece.model"}, {"sentencepiece.bpe.model"},
                 {"vocab.json", "merges.txt"}, {"vocab.txt"})  # fmt: skip
_OTHER_FILES = ("config.json", "generation_config.json", INDEX)
_LICENCES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")


@dataclass(frozen=True)
class ModelListing:
    """What a source of a model holds. commit: the hub's commit, None for files."""

    source: Source
    sizes: Mapping[str, int]
    commit: str | None
    snapshot: hub.Snapshot | None

    @property
    def label(self) -> str:
        """How messages name the model."""
        return self.source.label


def listing(source: Source, token: str | None) -> ModelListing:
    """List a model's files without reading them.

    Raises TrainerError when the source can't be reached or is a single file.
    """
    if isinstance(source, HubSource):
        found = hub.snapshot(source, token)
        return ModelListing(source, found.sizes, found.commit, found)
    if source.is_file:
        raise input_not_found(f"{source.label}: expected a folder with config.json and {WEIGHTS}, found a file")
    return ModelListing(source, source.sizes, None, None)


def small_files(sizes: Mapping[str, int], label: str) -> list[str]:
    """Names of the files to fetch before the weights: configuration, tokenizer, licence.

    Raises TrainerError naming what is missing.
    """
    if "config.json" not in sizes:
        if "adapter_config.json" in sizes:
            raise invalid_configuration(
                f"{label}: expected a whole model, found an adapter alone (adapter_config.json); name the model that it belongs to as "
                "spec.model.name, and this one as spec.model.adapter.name"
            )
        raise input_not_found(f"{label}: no config.json; found {some(sizes)}")
    if WEIGHTS not in sizes and INDEX not in sizes:
        raise invalid_configuration(f"{label}: {_no_safetensors(sizes)}")
    if not any(vocabulary <= set(sizes) for vocabulary in _VOCABULARIES):
        raise input_not_found(
            f"{label}: no tokenizer (expected tokenizer.json, tokenizer.model, or vocab.json and merges.txt); "
            "save it into the same folder"
        )
    licences = [name for name in sizes if "/" not in name and name.upper().startswith(_LICENCES)]
    return [name for name in (*_OTHER_FILES, *TOKENIZER_FILES) if name in sizes] + sorted(licences)


def _no_safetensors(sizes: Mapping[str, int]) -> str:
    pickles = [name for name in sizes if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    found = some(pickles) if pickles else some(sizes)
    return (
        f"expected {WEIGHTS} or {INDEX}, found {found}. Pickled weights run code when they are opened and are never read: "
        "convert a model that you trust with transformers' save_pretrained on your own machine, or take a revision of the "
        "repository that holds safetensors"
    )


def weight_files(folder: Path, sizes: Mapping[str, int], label: str) -> list[str]:
    """Names of the weight files: the shards that the index names, or the one file.

    folder: where the index was fetched to. Other safetensors of a repository are duplicates and are left out.
    Raises TrainerError naming missing shards.
    """
    if INDEX not in sizes:
        return [WEIGHTS]
    shards = sorted(set(weight_map(folder, label).values()))
    if any("/" in name or not name.endswith(".safetensors") for name in shards):
        raise invalid_configuration(f"{label}: {INDEX} names files that are not .safetensors files beside it")
    missing = [name for name in shards if name not in sizes]
    if missing:
        raise input_not_found(f"{label}: {len(missing)} of {len(shards)} weight files are missing: {some(missing)}")
    return shards


def weight_map(folder: Path, label: str) -> dict[str, str]:
    """File of each tensor, from the index of a sharded model; TrainerError INVALID_CONFIGURATION when it has none."""
    files = read_json(folder / INDEX, label).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise invalid_configuration(f"{label}: {INDEX} has no weight_map of tensor names to files")
    return files


def fetch(
    model: ModelListing,
    names: Sequence[str],
    folder: Path,
    token: str | None,
    cache: Cache | None = None,
    progress: Callable[[str, float], None] = lambda *_: None,
) -> None:
    """Copy or download files of a model into a folder; interrupted downloads are resumed.

    cache: the shared cache, or None.
    progress: called with what is being done and the share of bytes that are there.
    Raises TrainerError; VOLUME_ERROR before anything is written when the files do not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(model.sizes[name] for name in names)
    present = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(folder).free
    if total > free + present:
        raise volume_error(
            f"{model.label}: the files need {total / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free in {folder.parent}; "
            "set a larger checkpoint.volume.size"
        )
    done = 0
    for name in names:
        if model.snapshot is not None:
            if cache is None:
                hub.download(model.snapshot, [name], folder, token)
            else:

                def waiting(text: str, share: float = done / max(1, total)) -> None:
                    progress(text, share)

                cache.fetch(model.snapshot, name, folder, token, waiting)
        elif isinstance(model.source, FileSource):

            def part(share: float, before: int = done, size: int = model.sizes[name]) -> None:
                progress("fetching the model's files", (before + share * size) / max(1, total))

            model.source.fetch(name, folder / name, part)
        done += model.sizes[name]
        progress("fetching the model's files", done / max(1, total))


def sha256_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files, hex, by name; several at a time, because hashing leaves Python's lock."""
    names = list(names)
    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(names, pool.map(lambda name: sha256(folder / name), names), strict=True))


def check_against_hub(found: hub.Snapshot, folder: Path, digests: Mapping[str, str]) -> None:
    """Compare downloaded files with the hub's own digests, and remove those that differ.

    Raises TrainerError: SOURCE_UNAVAILABLE, because a retry may succeed.
    """
    wrong = [name for name, digest in digests.items() if found.sha256.get(name, digest) != digest]
    for name in wrong:
        (folder / name).unlink()
    if wrong:
        raise TrainerError(
            ExitCode.SOURCE_UNAVAILABLE, f"{found.repo}: downloaded files differ from the hub's SHA-256: {some(wrong)}"
        )


def read_json(path: Path, label: str) -> dict[str, Any]:
    """A JSON object in a file; TrainerError INVALID_CONFIGURATION when it is none."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise invalid_configuration(f"{label}: {path.name} is not valid JSON ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise invalid_configuration(f"{label}: {path.name}: expected an object, found something else")
    return value


def some(names: Iterable[str]) -> str:
    """A few names for a message."""
    names = sorted(names)
    return (", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")) or "nothing"
