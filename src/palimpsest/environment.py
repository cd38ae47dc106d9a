"""Which library versions and which hardware a result came from; recorded in every artifact, compared in the report."""

from __future__ import annotations

import platform
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "pyarrow",
    "polars",
    "numpy",
    "safetensors",
    "tokenizers",
    "pillow",
)


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Installed versions of the libraries that decide results."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@lru_cache(maxsize=1)
def processor() -> str:
    """The processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
            platform.processor(),
        )
    except OSError:
        return platform.processor()


def accelerator() -> str:
    """Name of the GPU in use, or "none". Does not load torch when the job did not."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return "none"


def describe() -> dict[str, Any]:
    """Python, libraries, processor and accelerator of this process."""
    return {
        "python": platform.python_version(),
        "libraries": versions(),
        "processor": processor(),
        "accelerator": accelerator(),
        "system": f"{platform.system()} {platform.machine()}",
    }
