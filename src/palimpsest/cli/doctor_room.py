"""Whether what the plan will do fits this machine: disk space, GPU memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping

from palimpsest import devices
from palimpsest.findings import FAIL, OK, WARN, Check, size
from palimpsest.needs import Needs
from palimpsest.plan.build import Plan

# Logs, Snakemake's own records, temporary files beside artifacts.
SPARE = 1 << 30
ROOM = "`du -sh data/* models/* .dvc/cache | sort -h` shows what is large; `palimpsest doctor` again when there is room"
LARGE = 256  # images of at least this side are not made on a CPU in practice


def disk(plan: Plan) -> Iterator[Check]:
    """Whether what the missing cells will write fits; their artifacts are written whole beside their place, then renamed."""
    cells = plan.needed()
    yield room_for(Needs(plan).disk(cells), len(cells), shutil.disk_usage(plan.root).free)


def room_for(parts: Mapping[str, int], cells: int, free: int) -> Check:
    """The finding for bytes to write by step, a number of cells, and free bytes."""
    text = f"{size(free)} free"
    if not cells:
        return Check(OK, "disk", f"{text}; nothing is to be made")
    wanted = sum(parts.values())
    largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
    shown = ", ".join(f"{step} {size(amount)}" for step, amount in largest)
    text += f"; {cells} cell(s) to make, about {size(wanted)} ({shown})"
    if wanted > free:
        return Check(FAIL, "disk", text, ROOM)
    if wanted + SPARE > free:
        return Check(WARN, "disk", f"{text}, which leaves less than {size(SPARE)}", ROOM)
    return Check(OK, "disk", text)


def gpu(plan: Plan) -> Iterator[Check]:
    """Whether every GPU holds the heaviest jobs of the experiment; whether one is needed at all."""
    needs = Needs(plan).gpu_memory
    wanted = ", ".join(f"{what} {size(amount)}" for what, amount in needs.items() if amount)
    unknown = [what for what, amount in needs.items() if amount is None]
    wanted += f"; unknown before the download: {', '.join(unknown)}" if unknown else ""
    found = devices.reported()
    if isinstance(found, str):
        yield Check(
            WARN, "gpu", found, "check the driver with `nvidia-smi`, or hide it with CUDA_VISIBLE_DEVICES="
        )
        return
    if not found:
        if plan.params.model.resolution < LARGE:
            yield Check(OK, "gpu", "none, and a model of this size does not need one")
        else:
            yield Check(
                WARN, "gpu", f"none; this experiment wants {wanted}", "run it on a cluster: docs/cluster.md"
            )
        return
    least = min(memory for _, memory in found)
    names = "; ".join(f"{name}, {size(memory)}" for name, memory in found)
    most = max((amount or 0, what) for what, amount in needs.items())
    if most[0] > least:
        remedy = "lower sampler.batch or the detector's batch in params.yaml (no key changes)"
        yield Check(WARN, "gpu", f"{names}; {most[1]} wants {size(most[0])}", remedy)
    else:
        yield Check(OK, "gpu", f"{names}; the experiment wants {wanted}")
