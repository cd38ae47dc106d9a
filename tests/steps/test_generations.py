"""Tables of generations: in order, with the PNG of every picture, written while pictures are still being made, or not at all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from palimpsest import closure, seal, store, streaming
from palimpsest.job import Job
from palimpsest.sampling.loop import Generation
from palimpsest.steps import generations

ROOTS = ("palimpsest.steps.generate", "palimpsest.job")
COUNT = 230


def job(folder: Path) -> Job:
    stamp = closure.stamp(ROOTS)
    # nothing but this module is loaded that the step does not count
    modules = sorted({*stamp["modules"], *(m for m in sys.modules if m.startswith("palimpsest"))})
    found = {**stamp, "modules": modules, "sources": closure.bytes_digest(modules)}
    where = {"suite": "nsfw"}
    return Job(
        "generate", where, "0" * 16, {}, [], folder / "out.parquet", recipe={"step": "generate"}, **found
    )


def rows(count: int = COUNT) -> list[dict[str, object]]:
    return [
        {"image_id": f"a/{i}", "source": "a", "prompt_id": i, "repetition": 0, "prompt": f"p{i}", "seed": i}
        for i in range(count)
    ]


def picture(i: int) -> np.ndarray | None:
    return None if i % 50 == 3 else np.full((8, 8, 3), i % 256, np.uint8)


def made(count: int = COUNT, broken: int = -1):
    for i in range(count):
        image = picture(i) if i != broken else np.zeros((8, 8, 9), np.uint8)
        yield Generation(
            f"a/{i}", f"p{i}", i, "generated" if image is not None else "aborted", "", image, 0.25, 1.0
        )


def test_order_bytes_and_description(tmp_path: Path) -> None:
    asked = job(tmp_path)
    generations.write_generations(asked, rows(), made(), lambda seconds: {"sampling_seconds": seconds})
    frame = store.read_parquet(asked.output)
    assert frame["image_id"].to_list() == [f"a/{i}" for i in range(COUNT)]
    for i, image in enumerate(frame["image"].to_list()):
        expected = picture(i)
        if expected is None:
            assert image is None and frame["decision"][i] == "aborted"
        else:
            assert image == {"bytes": store.encode_png(expected), "path": f"a/{i}.png"}
    meta = store.read_meta(asked.output)
    assert meta["sampling_seconds"] == COUNT / 4 and meta["key"] == "0" * 16 and meta["seconds"] > 0
    seal.check(asked.output)
    assert [p.name for p in tmp_path.iterdir()] == ["out.parquet"]


def test_the_file_is_laid_out_as_one_written_at_once(tmp_path: Path) -> None:
    asked = job(tmp_path)
    generations.write_generations(asked, rows(), made(), lambda _: {})
    table = pq.read_table(asked.output).replace_schema_metadata(None)
    store.write_parquet(table, tmp_path / "whole.parquet", {}, image_columns=["image"])
    ours, whole = (pq.ParquetFile(path) for path in (asked.output, tmp_path / "whole.parquet"))
    assert ours.schema_arrow.equals(whole.schema_arrow) and ours.read().equals(whole.read())
    assert ours.schema_arrow.metadata[b"huggingface"] == whole.schema_arrow.metadata[b"huggingface"]
    assert ours.metadata.num_row_groups == whole.metadata.num_row_groups == 3
    for group in range(3):
        columns = [f.metadata.row_group(group) for f in (ours, whole)]
        assert columns[0].num_rows == columns[1].num_rows
        kinds = [[c.column(i).compression for i in range(c.num_columns)] for c in columns]
        assert kinds[0] == kinds[1]


def test_rows_reach_the_disk_before_the_last_picture_is_made(tmp_path: Path) -> None:
    sizes: list[int] = []

    def watched():
        for generation in made(1000):
            if generation.image_id == "a/999":
                time.sleep(0.2)
                sizes.extend(path.stat().st_size for path in tmp_path.glob("*.part"))
            yield generation

    generations.write_generations(job(tmp_path), rows(1000), watched(), lambda _: {})
    assert sizes and sizes[0] > 50_000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: made(COUNT - 1), "expected the generation of a/229, got nothing"),
        (lambda: reversed(list(made())), "expected the generation of a/0, got a/229"),
        (lambda: made(broken=120), "Cannot handle this data type"),
    ],
)
def test_a_failure_on_the_way_fails_the_cell_and_leaves_nothing(tmp_path: Path, given, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        generations.write_generations(job(tmp_path), rows(), given(), lambda _: {})
    assert not list(tmp_path.iterdir())


def test_a_failing_disk_fails_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(streaming.Rows, "_write", full)
    with pytest.raises(OSError, match="no space left to write"):
        generations.write_generations(job(tmp_path), rows(), made(), lambda _: {})
    assert not list(tmp_path.iterdir())


KILLED = """
import sys, time
from pathlib import Path
from tests.steps.test_generations import job, made, rows
from palimpsest.steps import generations

def slow():
    for index, generation in enumerate(made(1000)):
        if index == 999:
            print("making", flush=True)
            time.sleep(60)
        yield generation

generations.write_generations(job(Path(sys.argv[1])), rows(1000), slow(), lambda _: {})
"""


def test_a_killed_job_leaves_nothing_final(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None and process.stdout.readline() == "making\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [path.name for path in tmp_path.iterdir()]
    assert left and all(name.endswith(".part") for name in left), json.dumps(left)
