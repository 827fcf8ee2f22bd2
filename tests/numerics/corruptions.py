"""Ways in which a checkpoint can be bad, done to the newest of two; each returns what the reason must contain.

Arguments: the folder of step 4 in a run's checkpoints, of which step 2 is good, and a folder elsewhere to use freely.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
SHARDS = ("rank-00000.safetensors", "rank-00001.safetensors")
Corruption = Callable[[Path, Path], str]
# By name, in the words of a test's report.
CORRUPTIONS: dict[str, Corruption] = {}


def corruption(function: Corruption) -> Corruption:
    """Add a way to be bad."""
    CORRUPTIONS[function.__name__.replace("_", " ")] = function
    return function


class Trap:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.mark), "w"))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a manifest as a stranger who knows the format would."""
    document = json.loads((folder / MANIFEST).read_text())
    edit(document)
    (folder / MANIFEST).write_text(json.dumps(document))


def replace_shard(folder: Path, content: bytes) -> None:
    """Another file in place of rank 1's, with a manifest that fits."""
    (folder / SHARDS[1]).write_bytes(content)
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(folder, lambda manifest: manifest["files"].update({SHARDS[1]: entry}))


def flip(path: Path, position: int) -> str:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    return f"{path.name}: the SHA-256 is not the one in the manifest"


@corruption
def truncated_shard(folder: Path, _: Path) -> str:
    size = (folder / SHARDS[1]).stat().st_size
    os.truncate(folder / SHARDS[1], size - 1)
    return f"rank-00001.safetensors: expected {size} bytes, found {size - 1}"


@corruption
def empty_shard(folder: Path, _: Path) -> str:
    os.truncate(folder / SHARDS[0], 0)
    return "bytes, found 0"


@corruption
def flipped_bit_in_the_data(folder: Path, _: Path) -> str:
    return flip(folder / SHARDS[1], -9)


@corruption
def flipped_bit_in_the_header(folder: Path, _: Path) -> str:
    return flip(folder / SHARDS[0], 20)


@corruption
def swapped_shards(folder: Path, elsewhere: Path) -> str:
    (folder / SHARDS[0]).rename(elsewhere / "first")
    (folder / SHARDS[1]).rename(folder / SHARDS[0])
    (elsewhere / "first").rename(folder / SHARDS[1])
    return "rank-00000.safetensors: the SHA-256 is not the one in the manifest"


@corruption
def older_manifest(folder: Path, _: Path) -> str:
    shutil.copyfile(folder.with_name("step-00000002") / MANIFEST, folder / MANIFEST)
    return "is of step 2, but the folder is step-00000004"


@corruption
def older_checkpoint_by_another_name(folder: Path, _: Path) -> str:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-00000002"), folder)
    return "is of step 2, but the folder is step-00000004"


@corruption
def missing_shard(folder: Path, _: Path) -> str:
    (folder / SHARDS[1]).unlink()
    return "rank-00001.safetensors: No such file or directory"


@corruption
def missing_manifest(folder: Path, _: Path) -> str:
    (folder / MANIFEST).unlink()
    return "manifest.json: No such file or directory"


@corruption
def shard_is_a_link(folder: Path, elsewhere: Path) -> str:
    (folder / SHARDS[1]).rename(elsewhere / "shard")
    (folder / SHARDS[1]).symlink_to(elsewhere / "shard")
    return "rank-00001.safetensors: Too many levels of symbolic links"


@corruption
def manifest_is_a_link(folder: Path, elsewhere: Path) -> str:
    (folder / MANIFEST).rename(elsewhere / "manifest")
    (folder / MANIFEST).symlink_to(elsewhere / "manifest")
    return "manifest.json: Too many levels of symbolic links"


@corruption
def folder_is_a_link(folder: Path, elsewhere: Path) -> str:
    folder.rename(elsewhere / folder.name)
    folder.symlink_to(elsewhere / folder.name)
    return "is a link or a file, and no folder"


@corruption
def hard_linked_from_another_job(folder: Path, _: Path) -> str:
    foreign = folder.with_name("step-00000006")
    foreign.mkdir()
    for name in SHARDS:
        (foreign / name).hardlink_to(folder / name)
    shutil.copyfile(folder / MANIFEST, foreign / MANIFEST)
    shutil.rmtree(folder)
    change(foreign, lambda m: m.update(step=6) or m["identity"].update({"spec.training.seed": 8}))
    return "belongs to other settings: spec.training.seed: the checkpoint has 8, the job 7"


@corruption
def of_another_model(folder: Path, _: Path) -> str:
    change(folder, lambda m: m["parameters"]["lm_head.weight"].update(shape=[1, 1]))
    return "lm_head.weight: "


@corruption
def path_in_a_name(folder: Path, elsewhere: Path) -> str:
    (folder / SHARDS[1]).rename(elsewhere / SHARDS[1])
    name = f"../../elsewhere/{SHARDS[1]}"
    change(folder, lambda m: m["files"].update({name: m["files"].pop(SHARDS[1])}))
    return f"expected 2 shards, rank-00000.safetensors and so on, found 2: {name}"


@corruption
def endless_world(folder: Path, _: Path) -> str:
    change(folder, lambda m: m.update(world_size=10**15))
    return "manifest.json: world_size: Input should be less than or equal to 100000"


@corruption
def number_without_end(folder: Path, _: Path) -> str:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"adam_step": 4', f'"adam_step": {"9" * 5000}'))
    return "manifest.json: expected JSON, found Exceeds the limit"


@corruption
def negative_step(folder: Path, _: Path) -> str:
    change(folder, lambda m: m.update(step=-4))
    return "manifest.json: step: Input should be greater than or equal to 0"


@corruption
def negative_shape(folder: Path, _: Path) -> str:
    change(folder, lambda m: next(iter(m["parameters"].values())).update(shape=[-1, 5]))
    return "Input should be greater than or equal to 0"


@corruption
def smaller_world(folder: Path, _: Path) -> str:
    change(folder, lambda m: m.update(world_size=1) or m["files"].pop(SHARDS[1]))
    return "rank-00000.safetensors: fp32/"


@corruption
def larger_world(folder: Path, _: Path) -> str:
    change(folder, lambda m: m.update(world_size=4))
    return "expected 4 shards, rank-00000.safetensors and so on, found 2"


@corruption
def number_in_quotes(folder: Path, _: Path) -> str:
    change(folder, lambda m: m.update(adam_step="4"))
    return "manifest.json: adam_step: Input should be a valid integer"


@corruption
def name_twice(folder: Path, _: Path) -> str:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text('{"step": 4,' + text.removeprefix("{"))
    return "manifest.json: expected JSON, found step twice in one object"


@corruption
def not_a_number(folder: Path, _: Path) -> str:
    change(folder, lambda m: m["metrics"].update(loss=float("nan")))
    return "manifest.json: expected JSON, found NaN, which is no number"


@corruption
def number_that_overflows(folder: Path, _: Path) -> str:
    change(folder, lambda m: m.update(time=1))
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"time": 1', '"time": 1e999'))
    return "manifest.json: expected JSON, found 1e999, which is too large a number"


@corruption
def not_utf8(folder: Path, _: Path) -> str:
    content = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(content.replace(b"versions", b"version\xff"))
    return "manifest.json: expected JSON, found 'utf-8' codec can't decode byte 0xff"


@corruption
def nested_without_end(folder: Path, _: Path) -> str:
    (folder / MANIFEST).write_text("[" * 100_000)
    return "manifest.json: expected JSON, found maximum recursion depth exceeded"


@corruption
def manifest_of_100_megabytes(folder: Path, _: Path) -> str:
    os.truncate(folder / MANIFEST, 100 << 20)
    return "manifest.json: expected at most 33554432 bytes, found more"


@corruption
def empty_manifest(folder: Path, _: Path) -> str:
    os.truncate(folder / MANIFEST, 0)
    return "manifest.json: expected JSON, found Expecting value"


@corruption
def shard_is_a_pipe(folder: Path, _: Path) -> str:
    (folder / SHARDS[1]).unlink()
    os.mkfifo(folder / SHARDS[1])
    return "rank-00001.safetensors: is not a regular file"


@corruption
def manifest_is_a_pipe(folder: Path, _: Path) -> str:
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    return "manifest.json: is not a regular file"


@corruption
def folder_is_a_file(folder: Path, _: Path) -> str:
    shutil.rmtree(folder)
    folder.write_text("no folder")
    return "is a link or a file, and no folder"


@corruption
def planted_pickle(folder: Path, elsewhere: Path) -> str:
    (folder / SHARDS[1]).write_bytes(pickle.dumps(Trap(elsewhere / "ran")))
    return "rank-00001.safetensors: expected "


@corruption
def planted_pickle_with_a_digest_that_fits(folder: Path, elsewhere: Path) -> str:
    replace_shard(folder, pickle.dumps(Trap(elsewhere / "ran")))
    return "rank-00001.safetensors: is not safetensors"


@corruption
def shard_without_tensors(folder: Path, _: Path) -> str:
    replace_shard(folder, (2).to_bytes(8, "little") + b"{}")
    return "rank-00001.safetensors: has no tensor fp32/"


@corruption
def shard_of_other_sizes(folder: Path, _: Path) -> str:
    table = json.dumps({"fp32/lm_head.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    replace_shard(folder, len(table).to_bytes(8, "little") + table + bytes(4))
    return "rank-00001.safetensors: "
