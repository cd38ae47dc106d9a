"""The journal of an annotation store: one line of JSON per event, only ever appended, on the disk before anybody is told that it is saved.

A process that is killed, or a machine that loses power, leaves at most one line that is not whole. Nobody was told that this one was
saved; it is put aside when the journal is opened again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any


class Busy(RuntimeError):
    """Another process has the journal open."""


class Damaged(RuntimeError):
    """A line in the middle of the journal cannot be read."""


class Journal:
    """An open journal, locked against other processes until it is closed or the process ends.

    records: the events that were there. torn: bytes at the end that were no whole line; they now lie in `<path>.torn`.
    Raises Busy, or Damaged with the number of the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # labels of a person about unsafe images are nobody else's business
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise Busy(
                f"{path} is open in another process: stop the other `palimpsest annotate` of this store, or name another store with --store"
            ) from None
        try:
            self.records, self.torn = self._read()
        except BaseException:
            self.close()
            raise
        _sync_folder(path.parent)

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        data = self.path.read_bytes()
        records: list[dict[str, Any]] = []
        whole = broken = 0
        lines = data.split(b"\n")
        position = 0
        for number, line in enumerate(lines[:-1], 1):
            position += len(line) + 1
            record = _parsed(line)
            if record is None:
                broken = broken or number
                continue
            if broken:
                raise Damaged(
                    f"{self.path}: line {broken} is no event, and later lines are. Somebody or something changed the file; "
                    "bring back a copy, or delete that line if you know what it was"
                )
            records.append(record)
            whole = position
        rest = data[whole:]
        if rest:
            with open(self.path.with_name(self.path.name + ".torn"), "ab") as aside:
                aside.write(rest + b"\n")
                aside.flush()
                os.fsync(aside.fileno())
            os.ftruncate(self._file, whole)
            os.fsync(self._file)
        return records, len(rest)

    def append(self, *records: Mapping[str, Any]) -> None:
        """Add events; they are on the disk when this returns. Raises OSError, and then none of them is in the journal."""
        text = "".join(json.dumps(dict(record)) + "\n" for record in records)
        size = os.fstat(self._file).st_size
        data = memoryview(text.encode())
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, size)
            raise

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> Sequence[Mapping[str, Any]]:
    """The events of a journal that may be open elsewhere, without touching it. Raises FileNotFoundError, Damaged."""
    lines = path.read_bytes().split(b"\n")[:-1]
    records = [_parsed(line) for line in lines]
    while records and records[-1] is None:
        records.pop()
    found = []
    for number, record in enumerate(records, 1):
        if record is None:
            raise Damaged(f"{path}: line {number} is no event; bring back a copy of the file")
        found.append(record)
    return found


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("kind"), str) else None


def _sync_folder(folder: Path) -> None:
    """A new file's name is on the disk only when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
