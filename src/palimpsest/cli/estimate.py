"""`palimpsest estimate`: the bill of an experiment before it is run. Loads torch only to calibrate."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from palimpsest.estimate import bill, chips, downloads, text
from palimpsest.estimate.work import Counter
from palimpsest.plan.build import Plan

DEFAULT = "h200"
HALF = "bfloat16"


def chosen(plan: Plan, device: str | None, calibrate: float | None, save: bool) -> chips.Chip:
    """The chip to reckon with: measured here and now, the named one, or the one of this machine. Raises UnknownChip."""
    if calibrate is None:
        return chips.chip(device or chips.here() or DEFAULT, plan.root)
    from palimpsest.estimate.calibrate import measure

    found = measure(plan, calibrate, device)
    if save:
        found.save(plan.root)
    return found


def report(plan: Plan, chip: chips.Chip, remaining: bool, as_json: bool) -> str:
    """The bill as text or as JSON."""
    counter, found = Counter(plan), downloads.items(plan)
    made = bill.make(plan, chip, counter)
    if as_json:
        whole = {
            **made.plain(),
            "inputs": [asdict(item) for item in found],
            "download": downloads.to_fetch(found),
        }
        return json.dumps(whole, indent=1, ensure_ascii=False)
    return "\n".join(text.lines(made, found, remaining, _in_half(counter, chip, made)))


def _in_half(counter: Counter, chip: chips.Chip, made: bill.Bill) -> str:
    """What images in half precision would take, where the settings ask for float32 on a chip that is faster in half."""
    rates = chip.rates["sampling"]
    plan = counter.plan
    if plan.params.sampler.dtype != "float32" or rates.get(HALF, 0.0) <= rates["float32"]:
        return ""
    faster = {
        kind: {**known, "float32": known[HALF] if kind in ("sampling", "coding") else known["float32"]}
        for kind, known in chip.rates.items()
    }
    other = bill.make(plan, replace(chip, rates=faster), counter).total.hours
    if other > 0.9 * made.total.hours:
        return ""
    return f"sampler.dtype is float32; with {HALF} everything would take {text.hours(other)} hours. Images would differ: docs/estimate.md."


def overlay(name: str, root: Path = Path(".")) -> Path | None:
    """The file that an argument means: a path, or the name of a file of experiments/. Raises FileNotFoundError."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = root / "experiments" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.as_posix() for p in (root / "experiments").glob("*.yaml"))
        raise FileNotFoundError(f"there is no {path}; allowed: {known}, or nothing for params.yaml alone")
    return None if path.name == "params.yaml" else path
