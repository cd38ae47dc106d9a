"""`palimpsest explain`: what decides a cell, and why its key is not that of an older artifact at the same place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from palimpsest import store
from palimpsest.cells import Cell
from palimpsest.plan.build import Plan

SHOWN = 12
LONGEST = 100
DEEPEST = 8


class NoSuchCell(LookupError):
    """Nothing in the plan is meant by what was given; the message lists what is near."""


def find(plan: Plan, text: str) -> list[Cell]:
    """The cells meant by a path, the beginning of a key, or (the beginning of) a place, in the order the data flows.

    A path with the key of another plan means the cell at its place. Raises NoSuchCell.
    """
    cells = list(plan.cells.values())
    text = text.strip().removeprefix("./")
    for wanted in (
        [c for c in cells if c.path == text],
        [c for c in cells if re.fullmatch("[0-9a-f]{4,16}", text) and c.key.startswith(text)],
        [c for c in cells if text in (c.name, c.place)],
        [c for c in cells if f"{c.name}/".startswith(f"{text}/") or f"{c.place}/".startswith(f"{text}/")],
        [c for c in cells if c.step == text],
        [c for c in cells if re.fullmatch(_pattern(c), text)],
    ):
        if wanted:
            return wanted
    near = [c.name for c in cells if all(part in c.name for part in re.split(r"[/ ]+", text) if part)]
    hint = (
        f"; these contain its parts: {near[:SHOWN]}"
        if near
        else f"; the {len(cells)} cells begin with {[c.name for c in cells[:5]]}"
    )
    raise NoSuchCell(
        f"no cell of this experiment is called {text!r}{hint}. A cell of another experiment needs --config."
    )


def _pattern(cell: Cell) -> str:
    return re.escape(cell.path).replace(cell.key, "[0-9a-f]{16}")


def explanation(plan: Plan, cells: list[Cell]) -> list[str]:
    """The lines to print: the first cell in full, the others by name."""
    lines = describe(plan, cells[0])
    if len(cells) > 1:
        lines += ["", f"{len(cells) - 1} more cell(s) by that name:"]
        lines += [f"  {c.key}  {c.name}  {state(plan, c)}" for c in cells[1 : 1 + SHOWN]]
        lines += [f"  ... and {len(cells) - 1 - SHOWN} more"] if len(cells) > 1 + SHOWN else []
    return lines


def state(plan: Plan, cell: Cell) -> str:
    """Whether the artifact is there."""
    return "present" if cell.made(plan.root) else "missing"


def describe(plan: Plan, cell: Cell) -> list[str]:
    """A cell's recipe and how it differs from each older artifact at its place."""
    lines = [cell.name, f"  key      {cell.key}", f"  file     {cell.path} ({state(plan, cell)})"]
    lines += [f"  code     {cell.code}  of {', '.join(cell.roots)} and what they import"]
    lines += [f"  read     {path}  {digest}" for path, digest in cell.raw.items()]
    lines += ["  settings"]
    lines += [f"    {name} = {_short(value)}" for name, value in flatten(cell.args)]
    if cell.inputs:
        lines += [f"  made from {len(cell.inputs)} cell(s)"]
        lines += [f"    {c.key}  {c.name}  {state(plan, c)}" for c in cell.inputs[:SHOWN]]
        lines += [f"    ... and {len(cell.inputs) - SHOWN} more"] if len(cell.inputs) > SHOWN else []
    older = siblings(plan, cell)
    if not older:
        return [*lines, "", "There is no artifact with another key at this place."]
    for path in older:
        lines += ["", f"differs from {path.relative_to(plan.root)} in"]
        lines += [f"  {line}" for line in _why(plan, cell, path)]
    return lines


def siblings(plan: Plan, cell: Cell) -> list[Path]:
    """Artifacts at the cell's place with another key, the newest first."""
    pattern = cell.path.replace(cell.key, "[0-9a-f]" * len(cell.key))
    found = [path for path in plan.root.glob(pattern) if path != plan.root / cell.path]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def recipe_of(path: Path) -> dict[str, Any] | None:
    """The recipe stored in an artifact, beside it for a page; None where there is none. Raises store.CorruptArtifact."""
    if path.suffix == ".html":
        beside = path.with_name("meta.json")
        return store.read_json(beside).get("recipe") if beside.is_file() else None
    meta = store.read_json(path).get("meta", {}) if path.suffix == ".json" else store.read_meta(path)
    return meta.get("recipe")


def _why(plan: Plan, cell: Cell, path: Path, depth: int = 0) -> Iterator[str]:
    """Differences of a cell's recipe from the one stored in an older artifact; changed inputs are followed to the first cause."""
    try:
        old = recipe_of(path)
    except store.CorruptArtifact as error:
        yield str(error)
        return
    if old is None:
        yield "(this artifact carries no recipe)"
        return
    pad = "  " * depth
    for line in differences(old, cell.recipe):
        yield pad + line
    before = {(step, where): key for step, where, key in old.get("inputs", [])}
    changed = [c for c in cell.inputs if before.get((c.step, c.place), c.key) != c.key]
    shown = changed if len(changed) <= SHOWN else _examples(changed)
    for source in shown:
        was = before[source.step, source.place]
        others = sum(c.step == source.step for c in changed) - 1 if shown is not changed else 0
        yield f"{pad}input {source.name}: {was} -> {source.key}{f' (and {others} more like it)' if others else ''}"
        earlier = plan.root / source.path.replace(source.key, was)
        if depth < DEEPEST and earlier.is_file():
            yield from _why(plan, source, earlier, depth + 1)
        elif depth < DEEPEST:
            yield f"{pad}  (the older one is not here, so its recipe cannot be compared)"


def _examples(changed: list[Cell]) -> list[Cell]:
    """One of many changed inputs for every step, in the order the data flows."""
    return list({c.step: c for c in reversed(changed)}.values())[::-1]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line per difference of two recipes, apart from the keys of inputs that both have."""
    lines = []
    if old.get("code") != new["code"]:
        lines.append(
            f"code: {old.get('code')} -> {new['code']} (the modules of this step, or what they import)"
        )
    for part in ("args", "raw"):
        before, after = dict(flatten(old.get(part, {}))), dict(flatten(new[part]))
        for name in sorted(before.keys() | after.keys()):
            if name not in before:
                lines.append(f"{part}: {name} = {_short(after[name])} is new")
            elif name not in after:
                lines.append(f"{part}: {name} = {_short(before[name])} is gone")
            elif before[name] != after[name]:
                lines.append(f"{part}: {name}: {_short(before[name])} -> {_short(after[name])}")
    before_inputs = {(step, where) for step, where, _ in old.get("inputs", [])}
    after_inputs = {(step, where) for step, where, _ in new["inputs"]}
    lines += [f"input {' '.join(name)} is new" for name in sorted(after_inputs - before_inputs)[:SHOWN]]
    lines += [f"input {' '.join(name)} is gone" for name in sorted(before_inputs - after_inputs)[:SHOWN]]
    return lines


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested mappings; lists of mappings are numbered, other lists stay whole."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from flatten(item, f"{prefix}.{name}".strip("."))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from flatten(item, f"{prefix}[{number}]")
    else:
        yield prefix, list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"
