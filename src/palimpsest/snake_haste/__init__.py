"""What Snakemake (9.27) works out anew for every job, file or edge of a graph although the answer is the same each time: asked once, half
of the time to plan ten thousand jobs is saved (`benchmarks/plan.py --plain` measures without).

Nothing here changes an answer. It is done to the versions of Snakemake whose answers it has been compared with; with any other, planning
takes what it takes.
"""

from __future__ import annotations

import gc

from palimpsest.snake_haste import files, graph, jobs, resources, scripts
from palimpsest.snake_haste.seam import declared

# The versions that tests/pipeline/test_snake_haste*.py have compared; to add one, run them with it (`make test-pipeline`).
KNOWN = ("9.27",)
__all__ = ["collect_again", "declared", "hasten"]


def hasten() -> None:
    """Let Snakemake remember, in this process. To be called when a plan has been made and before jobs are."""
    import snakemake

    _collect_nothing()
    if ".".join(snakemake.__version__.split(".")[:2]) not in KNOWN:
        return
    resources.hasten()
    jobs.hasten()
    graph.hasten()
    files.hasten()
    scripts.hasten()


def _collect_nothing() -> None:
    """Snakemake makes a hundred objects per job that live until the end: looking for garbage among them only takes time."""
    gc.freeze()
    gc.disable()


def collect_again() -> None:
    """To be called when jobs are about to run: what has been made for them stays, what each leaves behind need not."""
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)
    gc.enable()
