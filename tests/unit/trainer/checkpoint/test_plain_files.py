"""Files of a checkpoint: no links, no special files, and errors of the volume are not errors of a file."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_trainer.checkpoint import layout, plain_files, verification
from dpo_trainer.checkpoint.manifest import MANIFEST, File, read_manifest
from dpo_trainer.checkpoint.plain_files import BadCheckpoint
from tests.unit.trainer.checkpoints import a_checkpoint

pytestmark = pytest.mark.unit


def test_links_are_not_followed(tmp_path: Path):
    folder = a_checkpoint(tmp_path / "elsewhere", 1)
    root = tmp_path / "checkpoints"
    root.mkdir()
    (root / folder.name).symlink_to(folder)
    [(_, link)] = layout.committed(root)
    with pytest.raises(BadCheckpoint, match="is a link or a file"):
        read_manifest(link)

    real = a_checkpoint(root, 2)
    (real / MANIFEST).rename(tmp_path / "manifest.json")
    (real / MANIFEST).symlink_to(tmp_path / "manifest.json")
    with pytest.raises(BadCheckpoint, match="symbolic link"):
        read_manifest(real)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_special_files_do_not_block_a_reader(tmp_path: Path, make: Callable[[Path], None]):
    folder = a_checkpoint(tmp_path, 1)
    name = layout.shard_name(0)
    (folder / name).unlink()
    make(folder / name)
    (folder / MANIFEST).unlink()
    make(folder / MANIFEST)

    with pytest.raises(BadCheckpoint, match="is not a regular file"):
        verification.verify(folder, name, File(size=1, sha256="0" * 64))
    with pytest.raises(BadCheckpoint, match="is not a regular file"):
        read_manifest(folder)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE])
def test_a_volume_error_is_not_a_bad_checkpoint(number: int):
    error = OSError(number, os.strerror(number))
    with pytest.raises(OSError) as caught:
        plain_files.unreadable("rank-00000.safetensors", error)
    assert caught.value is error
    assert isinstance(plain_files.unreadable("x", OSError(errno.ENOENT, "gone")), BadCheckpoint)


def test_a_process_without_file_descriptors_skips_no_checkpoint(tmp_path: Path):
    folder = a_checkpoint(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            read_manifest(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
