"""The header of a safetensors file, read without torch.

8 bytes of header length (little endian), a JSON object of tensor name -> {dtype, shape, data_offsets}, then the data.
"""

import json
import os
from typing import Any, BinaryIO

# The safetensors library has the same limit.
MAX_BYTES = 100_000_000


def read(file: BinaryIO) -> dict[str, dict[str, Any]]:
    """Entry of each tensor, from a file that is at its beginning; afterwards the file is at the first byte of data.

    Entries are checked to be JSON objects and nothing more. Raises ValueError when the header is damaged, and OSError.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, MAX_BYTES):
        raise ValueError(f"header of {length} bytes in a file of {size}")
    try:
        header = json.loads(file.read(length).decode("utf-8"))
    except RecursionError as error:
        raise ValueError("the header is nested too deeply") from error
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise ValueError("the header is not an object of tensors")
    header.pop("__metadata__", None)
    return header
