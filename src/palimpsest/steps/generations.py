"""Generations to a table: pictures become PNG and go to the disk while the next batch is being made."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

from palimpsest import store, streaming

if TYPE_CHECKING:
    import pyarrow as pa

    from palimpsest.job import Job
    from palimpsest.sampling.loop import Generation

COLUMNS = ("image_id", "source", "prompt_id", "repetition", "prompt", "seed")
# Encoders; zlib lets other threads run meanwhile, so the loop goes on.
WORKERS = 2
# Pictures that may wait for an encoder, as many as a large batch has.
AHEAD = 64


def write_generations(
    job: Job,
    rows: Sequence[Mapping[str, Any]],
    generations: Iterable[Generation],
    describe: Callable[[float], Mapping[str, Any]],
) -> None:
    """The artifact of a job: generations beside their prompt rows, images as PNG in a struct column; order and count of `rows` are kept.

    describe: the artifact's description, given the seconds of all images together; called when they are made. Raises ValueError when a
    generation is missing or comes in another order; whatever fails on the way, encoding and writing included, leaves no artifact.
    """
    job.check()
    spent = 0.0
    with (
        streaming.parquet(job.output, schema(), image_columns=["image"]) as table,
        closing(encoded(generations)) as made,
    ):
        for row in rows:
            found = next(made, None)
            if found is None or found[0].image_id != row["image_id"]:
                got = found[0].image_id if found else "nothing"
                raise ValueError(f"expected the generation of {row['image_id']}, got {got}")
            generation, picture = found
            spent += generation.seconds or 0.0
            table.add(
                {
                    **{name: row[name] for name in COLUMNS},
                    "decision": generation.decision,
                    "reason": generation.reason,
                    "seconds": generation.seconds,
                    "image": picture and {"bytes": picture, "path": f"{row['image_id']}.png"},
                }
            )
        job.check()
        table.describe(job.meta(describe(spent)))


def encoded(generations: Iterable[Generation]) -> Generator[tuple[Generation, bytes | None]]:
    """Each generation with its PNG (None where there is no image), in order. Encoding goes on beside whatever makes the next ones."""
    waiting: deque[tuple[Generation, Future[bytes] | None]] = deque()
    pool = ThreadPoolExecutor(WORKERS)
    try:
        for generation in generations:
            image = generation.image
            waiting.append((generation, None if image is None else pool.submit(store.encode_png, image)))
            while len(waiting) > AHEAD:
                yield _first(waiting)
        while waiting:
            yield _first(waiting)
    finally:
        pool.shutdown(cancel_futures=True)


def _first(waiting: deque[tuple[Generation, Future[bytes] | None]]) -> tuple[Generation, bytes | None]:
    generation, encoding = waiting.popleft()
    return generation, None if encoding is None else encoding.result()


def schema() -> pa.Schema:
    """The columns of a table of generations."""
    import pyarrow as pa

    kinds = {name: pa.string() for name in (*COLUMNS, "decision", "reason")}
    kinds |= {"prompt_id": pa.int64(), "repetition": pa.int64(), "seed": pa.int64(), "seconds": pa.float64()}
    return pa.schema([*kinds.items(), ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])
