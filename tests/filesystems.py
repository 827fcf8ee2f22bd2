"""Real file systems of a test's own: small ones that fill up, and one whose server is gone."""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_DETACH = 2  # MNT_DETACH
_NEW_MOUNTS = 0x20000  # CLONE_NEWNS
_SLAVE_ALL = 1 << 19 | 1 << 14  # MS_SLAVE | MS_REC


@contextmanager
def small_file_system(place: Path, mebibytes: int) -> Iterator[Path]:
    """A file system on place/mounted: ext4 in a file on a loop device, or tmpfs where the machine has no such devices."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    mounted = place / "mounted"
    mounted.mkdir()
    image = place / "image"
    with image.open("wb") as file:
        file.truncate(mebibytes << 20)
    ext4 = shutil.which("mkfs.ext4") is not None and _run("mkfs.ext4", "-q", "-m", "0", str(image))
    if not (ext4 and _run("mount", "-o", "loop", str(image), str(mounted))):
        assert _run("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "none", str(mounted)), "tmpfs can't be mounted"
    try:
        yield mounted
    finally:
        while os.path.ismount(mounted):
            unmount(mounted)


def kind(mounted: Path) -> str:
    """ext4 or tmpfs."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return next(line[2] for line in reversed(lines) if line[1] == str(mounted))


def fill(mounted: Path) -> Path:
    """Take all the room that is left, as another writer would; returns the file that has it."""
    path = mounted / "another-writers-file"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


def set_writable(mounted: Path, writable: bool) -> None:
    """Mount it anew for writing, or for reading alone."""
    assert _run("mount", "-o", f"remount,{'rw' if writable else 'ro'}", str(mounted))


def unmount(mounted: Path) -> None:
    """Take it away, also while files are open there."""
    if _libc().umount2(os.fsencode(mounted), _DETACH):
        raise OSError(ctypes.get_errno(), "umount2")


@contextmanager
def server_is_gone(folder: Path) -> Iterator[None]:
    """A file system over a folder, whose server has ended: every access fails with ENOTCONN, as on a network volume."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    try:
        if _libc().mount(b"gone", os.fsencode(folder), b"fuse", 0, options.encode()):
            raise OSError(ctypes.get_errno(), "mount")
    finally:
        os.close(device)
    try:
        yield
    finally:
        unmount(folder)


def take_own_mounts() -> None:
    """What this process mounts from now on ends with it and its children, even if it is killed. Call it before threads start.

    Without root it does nothing, for then nothing can be mounted either.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        return
    if _libc().unshare(_NEW_MOUNTS) or _libc().mount(None, b"/", None, _SLAVE_ALL, None):
        raise OSError(ctypes.get_errno(), "unshare")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _run(*argv: str) -> bool:
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0
