"""Is a checkpoint intact, and does it stay? Checks digests, and that each shard holds the slices that readers need. Needs no torch."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

from dpo_trainer.checkpoint import layout, plain_files
from dpo_trainer.checkpoint.layout import SHARD
from dpo_trainer.checkpoint.manifest import File, Manifest, read_manifest
from dpo_trainer.checkpoint.plain_files import BadCheckpoint, open_plain, unreadable
from dpo_trainer.checkpoint.slices import KINDS, partition
from dpo_trainer.runtime import safetensors_header

# Shards that are read at a time.
READERS = 8


def verify_shards(
    folder: Path,
    manifest: Manifest,
    ranks: Iterable[int],
    *,
    kinds: Iterable[str],
    alive: Callable[[], None] = lambda: None,
) -> None:
    """Read every byte of the shards of some ranks, several at a time. kinds: the tensors that each must have of every parameter (KINDS).

    alive: see verify; called in the caller's thread.
    Raises BadCheckpoint of the first bad shard, and OSError when the volume as a whole does not respond.
    """
    # One entry for each part that was read, and at the end of each shard.
    read: SimpleQueue[bool] = SimpleQueue()

    def check(rank: int) -> None:
        try:
            name = layout.shard_name(rank)
            verify(folder, name, manifest.files[name], lambda: read.put(False))
            _check_slices(folder / name, manifest, rank, kinds)
        finally:
            read.put(True)

    # Reading and hashing release the interpreter lock, so the threads use several cores.
    with ThreadPoolExecutor(READERS) as pool:
        left = [pool.submit(check, rank) for rank in sorted(ranks)]
        ended = 0
        while ended < len(left):
            if read.get():
                ended += 1
            else:
                alive()
        for one in left:
            one.result()


def usable_costs(found: Iterable[tuple[int, Path]], refused: Collection[int]) -> dict[int, float | None]:
    """Cost of the evaluation of each checkpoint that a load may use, by step; None where there was no evaluation.

    found: from layout.committed. refused: steps that a load refused. Refused and damaged checkpoints don't count towards
    keepLast and keepBest. Raises OSError when the volume as a whole does not respond.
    """
    costs: dict[int, float | None] = {}
    for step, folder in found:
        if step not in refused:
            with suppress(BadCheckpoint):
                manifest, _ = read_manifest(folder)
                for name, file in manifest.files.items():
                    verify_size(folder, name, file)
                costs[step] = manifest.selection_cost
    return costs


def retained(costs: Mapping[int, float | None], newest: int, keep_last: int, keep_best: int) -> set[int]:
    """Steps of the checkpoints that stay.

    costs: evaluation result by step, less is better, None without an evaluation. newest: the step that was just committed. Later
    steps were refused when this attempt began, or it would have resumed from them, so they are deleted.
    """
    usable = {step: cost for step, cost in costs.items() if step <= newest}
    last = sorted(usable, reverse=True)[: max(1, keep_last)]
    # Ties go to the later step: it has seen more data.
    best = sorted((cost, -step) for step, cost in usable.items() if cost is not None)[:keep_best]
    return {newest, *last, *(-step for _, step in best)}


def kinds_of(manifest: Manifest) -> tuple[str, ...]:
    """Kinds of tensors needed to resume: before the optimizer's first update there are only weights."""
    return KINDS if manifest.adam_step else KINDS[:1]


def _check_slices(path: Path, manifest: Manifest, rank: int, kinds: Iterable[str]) -> None:
    """Compare a shard's table of contents with the parameters in the manifest.

    Digests prove integrity, not a correct writer.
    """
    table = _read_table(path)
    for kind in kinds:
        for parameter, whole in manifest.parameters.items():
            start, end = partition(whole.numel, rank, manifest.world_size)
            if end == start:
                continue
            found = table.get(f"{kind}/{parameter}")
            if found is None:
                raise BadCheckpoint(f"{path.name}: has no tensor {kind}/{parameter}")
            if found.get("dtype") != "F32" or found.get("shape") != [end - start]:
                what = plain_files.sanitized(f"{found.get('shape')} of {found.get('dtype')}")
                raise BadCheckpoint(f"{path.name}: {kind}/{parameter}: expected [{end - start}] of F32, found {what}")


def _read_table(path: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file, with the place of every tensor in it. Raises BadCheckpoint."""
    try:
        with plain_files.open_plain(path) as file:
            return safetensors_header.read(file)
    except OSError as error:
        raise plain_files.unreadable(path.name, error) from error
    except ValueError as error:
        raise BadCheckpoint(f"{path.name}: is not safetensors") from error


def verify(folder: Path, name: str, expected: File, alive: Callable[[], None] = lambda: None) -> None:
    """Compare every byte of a file with its entry in the manifest. alive: called during reading.

    Raises BadCheckpoint, and OSError when the volume as a whole does not respond.
    """
    digest = hashlib.sha256()
    try:
        with _open_shard(folder, name, expected) as file:
            left = expected.size
            while left and (chunk := file.read(min(left, 8 << 20))):
                digest.update(chunk)
                left -= len(chunk)
                alive()
    except OSError as error:
        raise unreadable(name, error) from error
    if digest.hexdigest() != expected.sha256:
        raise BadCheckpoint(f"{name}: the SHA-256 is not the one in the manifest")


def verify_size(folder: Path, name: str, expected: File) -> None:
    """Compare a file's size alone with its entry in the manifest. Raises as verify does."""
    try:
        _open_shard(folder, name, expected).close()
    except OSError as error:
        raise unreadable(name, error) from error


def _open_shard(folder: Path, name: str, expected: File) -> BinaryIO:
    if not SHARD.fullmatch(name):
        raise BadCheckpoint(f"{name!r} is no name of a shard")
    file = open_plain(folder / name)
    size = os.fstat(file.fileno()).st_size
    if size != expected.size:
        file.close()
        raise BadCheckpoint(f"{name}: expected {expected.size} bytes, found {size}")
    return file
