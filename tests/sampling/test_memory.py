"""What happens when memory runs out: the batch halves, the images stay, and the event is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from palimpsest.job import Job, _record_failure, failure_path
from palimpsest.params import Sampler
from palimpsest.sampling.loop import Request, generate
from palimpsest.sampling.memory import Fitting, NotEnoughMemory, out_of_memory
from palimpsest.sampling.pipeline import Hook
from palimpsest.steps.common import noted
from tests import tiny

REQUESTS = [Request(f"r{i}", word, 7 + i) for i, word in enumerate(["a robot", "red house", "gears"] * 4)]


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def sampler(batch: int, steps: int = 3) -> Sampler:
    return Sampler(name="ddim", steps=steps, guidance=5.0, batch=batch)


class Room(Hook):
    """Device memory for `images` images: one more, and PyTorch's own allocator is asked for what no machine has."""

    def __init__(self, images: int) -> None:
        self.images, self.seen = images, []

    def embed(self, pipeline, conditioning):
        self.seen.append(len(conditioning.prompts))
        if len(conditioning.prompts) > self.images:
            torch.empty(1 << 60, dtype=torch.uint8)
        return conditioning


def stacked(made) -> np.ndarray:
    return np.stack([g.image for g in made]).astype(int)


def test_the_batch_halves_until_it_fits_and_stays_there(pipeline) -> None:
    whole = list(generate(pipeline, REQUESTS, sampler(12), 16))
    room, halvings = Room(3), []
    made = list(generate(pipeline.with_hook(room), REQUESTS, sampler(12), 16, halvings))
    assert room.seen == [12, 6, 3, 3, 3, 3]
    assert [(h.images, h.then, h.resolution, h.device) for h in halvings] == [
        (12, 6, 16, "cpu"),
        (6, 3, 16, "cpu"),
    ]
    assert "can't allocate memory" in halvings[0].why and halvings[0].peak_memory_mb > 0
    assert [g.image_id for g in made] == [r.image_id for r in REQUESTS]
    assert np.abs(stacked(made) - stacked(whole)).max() <= 1
    assert json.dumps(noted(halvings)) and noted([]) == {}


def test_a_last_batch_that_is_smaller_halves_from_its_own_size(pipeline) -> None:
    room, halvings = Room(2), []
    made = list(generate(pipeline.with_hook(room), REQUESTS[:5], sampler(64), 16, halvings))
    assert room.seen == [5, 3, 2, 2, 1] and len(made) == 5
    assert [h.then for h in halvings] == [3, 2]


def test_below_one_image_the_cell_fails_with_what_was_tried(pipeline) -> None:
    with pytest.raises(NotEnoughMemory) as failure:
        list(generate(pipeline.with_hook(Room(0)), REQUESTS[:4], sampler(4), 16))
    said = str(failure.value)
    for part in (
        "one image of 16 x 16",
        "on cpu",
        "tried 4, 2, 1 at once with ddim in float32",
        "sampler.dtype",
        "model.resolution",
    ):
        assert part in said
    assert isinstance(failure.value.__cause__, RuntimeError)


def test_the_record_of_such_a_cell_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    cell = Job("generate", {"suite": "nsfw"}, "0" * 16, {}, [], Path("out"), [], "", [], "", {})
    _record_failure(cell, NotEnoughMemory("out of memory: one image of 512 x 512 does not fit"))
    record = json.loads(failure_path("0" * 16).read_text())
    assert record["status"] == "oom" and "512 x 512" in record["reason"]


@pytest.mark.parametrize(
    ("error", "means"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for a convolution"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_mean_it(error: Exception, means: bool) -> None:
    assert out_of_memory(error) is means
    fitting = Fitting(8, 16, "cpu")
    if not means:
        with pytest.raises(type(error), match=str(error)):
            fitting.failed(8, error)
        assert fitting.size == 8 and not fitting.halvings
    else:
        fitting.failed(8, error)
        assert fitting.size == 4


class Broken(Hook):
    def embed(self, pipeline, conditioning):
        raise RuntimeError("a shape does not fit")


def test_other_errors_are_not_tried_again(pipeline) -> None:
    with pytest.raises(RuntimeError, match="a shape does not fit"):
        list(generate(pipeline.with_hook(Broken()), REQUESTS, sampler(4), 16))


STARVED = """
import json, resource, sys
import numpy as np
from tests.sampling.test_memory import pipeline_and_requests, sampler, stacked
from palimpsest.sampling.loop import generate
from palimpsest.sampling.memory import NotEnoughMemory

tiny, requests = pipeline_and_requests()
small = stacked(generate(tiny, requests, sampler(16, 1), 16))  # libraries have what they need from now on
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20,) * 2)
halvings = []
made = stacked(generate(tiny, requests, sampler(len(requests), 1), 16, halvings))
print(json.dumps([[h.images, h.then, h.why] for h in halvings]), int(np.abs(made - small).max()), len(made))
"""


def pipeline_and_requests():
    return tiny.build(), [Request(str(i), "a robot", i) for i in range(256)]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
def test_a_process_that_really_runs_out_of_memory_makes_the_same_images() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARVED, "40"], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr[-2000:]
    halvings, apart, count = done.stdout.strip().rsplit(" ", 2)
    assert json.loads(halvings), "memory did not run out"
    assert int(apart) <= 1 and int(count) == 256
