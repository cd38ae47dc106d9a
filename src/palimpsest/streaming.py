"""A Parquet artifact written while its rows are still being made, so that no more than a few row groups are in memory.

What `palimpsest.store` promises holds here too: the file has its name only when it is complete, with the recipe inside and a seal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest import seal, store

if TYPE_CHECKING:
    import pyarrow as pa

GROUP = 100


class Rows:
    """The rows of a file that is being written. `add` them in order, `describe` the file once; a row group at a time goes to the disk, in a
    thread of its own.
    """

    def __init__(self, writer: Any, schema: pa.Schema, pool: ThreadPoolExecutor, group: int) -> None:
        self._writer, self._schema, self._pool, self._group = writer, schema, pool, group
        self._waiting: list[Mapping[str, Any]] = []
        self._writing: Future[None] | None = None
        self.meta: Mapping[str, Any] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """One more row, with a value for every column. Raises what went wrong with an earlier group."""
        self._waiting.append(row)
        if len(self._waiting) >= self._group:
            self.flush()

    def describe(self, meta: Mapping[str, Any]) -> None:
        """What goes into the file's description."""
        self.meta = meta

    def flush(self) -> None:
        """Hand over what waits; the group before it has to be on the disk by then, so that a slow disk holds back, not memory."""
        self.settle()
        rows, self._waiting = self._waiting, []
        if rows:
            self._writing = self._pool.submit(self._write, rows)

    def settle(self) -> None:
        """Wait for the group that is being written. Raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(list(rows), schema=self._schema))


@contextmanager
def parquet(
    path: str | Path, schema: pa.Schema, image_columns: Sequence[str] = (), group: int = GROUP
) -> Iterator[Rows]:
    """A context to write a Parquet file row by row: complete when it ends well, not there when it does not.

    image_columns: as for `store.write_parquet`, with which the layout is shared. group: rows of a row group.
    """
    import pyarrow.parquet as pq

    with store.atomic(path) as part:
        # without the schema's own copy of the description, which would have to be known before the first row
        compression = store.compressions(schema, image_columns)
        writer = pq.ParquetWriter(part, schema, compression=compression, store_schema=False)
        pool = ThreadPoolExecutor(1)
        rows = Rows(writer, schema, pool, group)
        try:
            yield rows
            rows.flush()
            rows.settle()
            described = {store.META: json.dumps(dict(rows.meta), sort_keys=True, ensure_ascii=False).encode()}
            writer.add_key_value_metadata({**described, **store.features(schema, image_columns)})
        finally:
            pool.shutdown()  # nothing may be writing when the file is closed
            writer.close()
        seal.close(part)
