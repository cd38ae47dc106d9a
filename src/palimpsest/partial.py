"""The report of a run that could not finish: what is there, and for everything else the reason."""

from __future__ import annotations

import json

from palimpsest.cells import Cell
from palimpsest.job import failure_path
from palimpsest.plan.build import Plan
from palimpsest.runs import BASE


def partial(plan: Plan) -> Cell:
    """A report of what is there now, with every cell that is missing listed with its reason; it has a key of its own.

    Raises LookupError when not even the base has been scored.
    """
    where, args, scores, comparisons, shared = plan.tables.gathered
    here = [cell for cell in scores if (plan.root / cell.path).exists()]
    bases = {
        (c.where["preset"], c.where["suite"], c.where["shard"]) for c in here if c.where["method"] == BASE
    }
    if not bases:
        raise LookupError(
            "the base model has not been scored yet, so there is nothing to report; run `snakemake` first"
        )
    known = {(run["method"], run["preset"], run["variant"]): run["base"] for run in args["runs"]}
    lost: list[Cell] = []
    kept: list[Cell] = []
    for cell in scores:
        place = cell.where
        base = known.get((place["method"], place["preset"], place["variant"]), place["preset"])
        whole = cell in here and (base, place["suite"], place["shard"]) in bases
        (kept if whole else lost).append(cell)
    missing = [{"where": dict(cell.where), **reason(plan, cell)} for cell in lost]
    present = [cell for cell in comparisons if (plan.root / cell.path).exists()]
    extras = [c for c in shared if c.step != "quality_table" and (plan.root / c.path).exists()]
    quality = plan.quality.table(args["runs"], lambda cell: (plan.root / cell.path).exists())
    extras += [quality] if quality else []
    return plan.tables.report(where, {**args, "missing": missing}, kept, present, extras)


def reason(plan: Plan, cell: Cell) -> dict[str, str]:
    """Why a cell is missing: the nearest failure on record upstream, or that it has not been run."""
    stack = [cell]
    while stack:
        here = stack.pop()
        record = plan.root / failure_path(here.key)
        if record.exists():
            found = json.loads(record.read_text(encoding="utf-8"))
            return {"status": found["status"], "reason": f"{here.name}: {found['reason']}"}
        stack += [c for c in here.inputs if not (plan.root / c.path).exists()]
    return {"status": "missing", "reason": "not run yet"}
