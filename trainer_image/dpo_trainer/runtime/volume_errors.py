"""Kinds of OSErrors of a volume: one table for all code that explains or classifies them."""

import errno
from enum import Enum


class Kind(Enum):
    """What an OSError says about the volume or the process."""

    FULL = "no free space"
    QUOTA = "the quota is used up"
    FILE_TOO_LARGE = "above the largest size of a file"
    READ_ONLY = "mounted read-only"
    FAILING = "I/O error of the storage"
    STALE = "stale handle of a network file system"
    # Sockets have these errors too; an error of a volume names a file.
    GONE = "not connected, or the device is gone"
    UNREACHABLE = "the server of a network file system does not respond"
    DENIED = "refused by owner or mode"
    EXHAUSTED = "this process has no more files or memory"


_KINDS = {
    errno.ENOSPC: Kind.FULL,
    errno.EDQUOT: Kind.QUOTA,
    errno.EFBIG: Kind.FILE_TOO_LARGE,
    errno.EROFS: Kind.READ_ONLY,
    errno.EIO: Kind.FAILING,
    errno.ESTALE: Kind.STALE,
    errno.ENOTCONN: Kind.GONE,
    errno.ENODEV: Kind.GONE,
    errno.ENXIO: Kind.GONE,
    errno.ETIMEDOUT: Kind.GONE,
    errno.EHOSTDOWN: Kind.UNREACHABLE,
    errno.EHOSTUNREACH: Kind.UNREACHABLE,
    errno.EACCES: Kind.DENIED,
    errno.EPERM: Kind.DENIED,
    errno.EMFILE: Kind.EXHAUSTED,
    errno.ENFILE: Kind.EXHAUSTED,
    errno.ENOMEM: Kind.EXHAUSTED,
}


def kind(error: OSError) -> Kind | None:
    """Kind of an error; None for errors of one file, such as a missing one."""
    return _KINDS.get(error.errno) if error.errno is not None else None
