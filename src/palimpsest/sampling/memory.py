"""Running out of memory: which errors mean it, and a batch that becomes smaller until it fits.

An image does not depend on the batch it was made in (its noise comes from a generator of its own), so a smaller batch gives the same
pictures within rounding, only later.
"""

from __future__ import annotations

import gc
import logging
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

log = logging.getLogger(__name__)
Item = TypeVar("Item")
# What allocators say where they raise a plain RuntimeError: PyTorch's for the CPU, cuBLAS and cuDNN for their workspaces, and CUDA itself.
SAID = (
    "defaultcpuallocator: can't allocate memory",
    "cuda error: out of memory",
    "cuda out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
# All that oneDNN says when it has no room for its kernels and buffers; with more behind it, the same words mean something it cannot do.
SAID_ALONE = (
    "could not create a primitive",
    "could not execute a primitive",
    "could not create a memory object",
)
SHOWN = 200


class NotEnoughMemory(MemoryError):
    """One image alone does not fit. The message says what was tried, where, and what to change."""


@dataclass(frozen=True)
class Halving:
    """A batch that did not fit: how many images it had, how many were tried next, on which device, and what the allocator said."""

    images: int
    then: int
    resolution: int
    device: str
    peak_memory_mb: float
    why: str


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on the GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).strip().lower()
    return isinstance(error, RuntimeError) and (said in SAID_ALONE or any(part in said for part in SAID))


class Fitting:
    """Batches that fit into memory: `size` images at first, half as many each time memory runs out, and so to the end of the cell.

    what: the settings that a message names. halvings: where to note what happened, for the description of the artifact.
    """

    def __init__(
        self,
        size: int,
        resolution: int,
        device: Any,
        what: str = "",
        halvings: list[Halving] | None = None,
    ) -> None:
        self.size, self.resolution, self.device, self.what = size, resolution, device, what
        self.tried: list[int] = []
        self.halvings = [] if halvings is None else halvings
        self._again = False

    def batches(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """The items in order, cut as `size` is when each batch begins. What `failed` was told of comes again, in smaller batches."""
        done = 0
        while done < len(items):
            self._again = False
            part = items[done : done + self.size]
            yield part
            if not self._again:
                done += len(part)

    def failed(self, images: int, error: BaseException) -> None:
        """Have a batch of so many images made again in halves. Raises the error itself when it is about something else, and
        NotEnoughMemory when there was only one image.
        """
        if not out_of_memory(error) or isinstance(error, NotEnoughMemory):
            raise error
        self.tried.append(images)
        if images <= 1:
            raise NotEnoughMemory(self._nothing_fits(error)) from error
        self._again, self.size = True, (images + 1) // 2
        why = _first_line(error)
        peak = round(peak_memory_mb(self.device), 1)
        self.halvings.append(Halving(images, self.size, self.resolution, str(self.device), peak, why))
        log.warning(
            "out of memory on %s with %d images of %d x %d at once; trying %d. %s",
            self.device, images, self.resolution, self.resolution, self.size, why,
        )  # fmt: skip

    def release(self) -> None:
        """Give back what the failed batch held; to be called where its error is forgotten, because a traceback keeps tensors alive."""
        gc.collect()
        if torch.device(self.device).type == "cuda":
            torch.cuda.empty_cache()

    def _nothing_fits(self, error: BaseException) -> str:
        tried = ", ".join(map(str, self.tried))
        return (
            f"out of memory: one image of {self.resolution} x {self.resolution} does not fit on {self.device} ({room(self.device)}); "
            f"tried {tried} at once{f' with {self.what}' if self.what else ''}. Free the device of other programs, run fewer jobs at a "
            "time (`snakemake --resources gpu=1`, or `--cores 1` where there is no GPU), set `sampler.dtype` to float16 or bfloat16, lower "
            f"`model.resolution`, or use a larger device. The allocator said: {_first_line(error)}"
        )


def room(device: Any) -> str:
    """Free and total memory of a device in words, and the most that this process had."""
    peak = f"most used so far {peak_memory_mb(device):.0f} MB"
    if torch.device(device).type == "cuda":
        free, total = (value / 2**20 for value in torch.cuda.mem_get_info(device))
        return f"{free:.0f} of {total:.0f} MB free, {peak}"
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return peak if limit == resource.RLIM_INFINITY else f"limit {limit / 2**20:.0f} MB, {peak}"


def peak_memory_mb(device: Any) -> float:
    """Highest memory use so far in MB: allocated on the device for CUDA, else resident memory of the process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _first_line(error: BaseException) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text[:SHOWN]
