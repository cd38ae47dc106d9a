"""What a device can do, measured here and now: multiplications, copies, and the clock for the rest."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch

from palimpsest.environment import processor
from palimpsest.sampling.memory import peak_memory_mb

# Sides of the matrices: the largest rate counts.
SIDES = {"cuda": (4096, 8192, 16384), "cpu": (512, 1024, 2048)}
COPIED = {"cuda": 1 << 32, "cpu": 1 << 28}


def clock(device: Any) -> float:
    """Seconds, when everything that was asked of the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def fastest(work: Callable[[], Any], device: Any, repeat: int = 5) -> float:
    """The fewest seconds of several runs, after one that counts for nothing."""
    work()
    seconds = []
    for _ in range(repeat):
        began = worked(device)
        work()
        seconds.append(worked(device) - began)
    return min(seconds)


def worked(device: Any) -> float:
    """A clock for work: on one thread of a CPU the seconds of the processor, which other programs do not lengthen; else the time of day."""
    if torch.device(device).type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time()
    return clock(device)


def matmul_rate(device: Any, dtype: torch.dtype) -> float:
    """Floating-point operations per second of square matrix products, two for every multiplication with its addition."""
    rates = []
    for side in SIDES[torch.device(device).type]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rates.append(2 * side**3 / fastest(lambda a=a, b=b: a @ b, device))  # type: ignore[misc]
    return max(rates)


def copy_bandwidth(device: Any) -> float:
    """Bytes read and written per second by a copy within the device's memory."""
    size = COPIED[torch.device(device).type]
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / fastest(lambda: target.copy_(source), device)


def peak_since(device: Any) -> Callable[[], float]:
    """A function for the highest memory use in MB from now on: exact on CUDA; on the CPU that of the process since it began."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return lambda: round(peak_memory_mb(device), 1)


def described(device: Any) -> dict[str, Any]:
    """Name of the device and versions of what computes on it."""
    cuda = torch.device(device).type == "cuda"
    names = ("torch", "diffusers", "transformers")
    return {
        "device": torch.cuda.get_device_name(device) if cuda else processor(),
        "kind": "cuda" if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "memory_mb": round(
            torch.cuda.get_device_properties(device).total_memory / 2**20
            if cuda
            else resource.getpagesize() * _pages() / 2**20
        ),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "cuda": torch.version.cuda if cuda else None,
    }


def _pages() -> int:
    import os

    return os.sysconf("SC_PHYS_PAGES")
