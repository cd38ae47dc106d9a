"""A checksum of a whole file inside the file: one changed byte is found anywhere, in any format, without a file beside it.

Whoever writes an artifact puts `NAME: OPEN` into its description, which lies as plain text in Parquet, safetensors and JSON alike.
`close` then replaces the 64 zeros by the SHA-256 of the file with those zeros in it. Equal content still gives equal bytes.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from pathlib import Path

NAME = "palimpsest_seal"
OPEN = "0" * 64
# In safetensors the description is JSON inside JSON, so its quotes are escaped.
VALUE = re.compile(rb'palimpsest_seal\\?": ?\\?"([0-9a-f]{64})')
BLOCK = 1 << 22


class Broken(RuntimeError):
    """A file whose content is not what was written, or that was never sealed. The message says which, without the path."""


def close(path: Path) -> None:
    """Seal a file that was just written; a file without an open seal is left as it is."""
    with open(path, "r+b") as handle:
        found = _value(handle.fileno())
        if found is None or found[1] != OPEN:
            return
        handle.seek(found[0])
        handle.write(_digest(handle.fileno(), found[0]).encode())


def check(path: Path) -> None:
    """Raise Broken when the file is not, byte for byte, what was sealed."""
    with open(path, "rb") as handle:
        found = _value(handle.fileno())
        if found is None:
            raise Broken("it has no seal: the file is damaged, or was not written by a run")
        if _digest(handle.fileno(), found[0]) != found[1]:
            raise Broken("its bytes changed after it was written")


def _value(file: int) -> tuple[int, str] | None:
    """Where the value of the seal starts, and the value; the last one in the file, because a description ends a Parquet file."""
    try:
        with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as data:
            found = VALUE.match(data, max(data.rfind(NAME.encode()), 0))
            return (found.start(1), found[1].decode()) if found else None
    except ValueError:  # an empty file cannot be mapped
        return None


def _digest(file: int, start: int) -> str:
    """SHA-256 of the file with an open seal."""
    digest = hashlib.sha256()
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
        for first, last in ((0, start), (start + len(OPEN), len(view))):
            for at in range(first, last, BLOCK):
                digest.update(view[at : min(at + BLOCK, last)])
            if first == 0:
                digest.update(OPEN.encode())
    return digest.hexdigest()
