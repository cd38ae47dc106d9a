"""What a chip can do: rates of the kinds of work, each from a measurement or derived from the maker's figures, and which it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from palimpsest import devices

KINDS = ("sampling", "training", "judging", "coding")
TABLE = Path(__file__).with_name("chips.yaml")
MEASURED = Path("benchmarks/rates")


class UnknownChip(ValueError):
    """A name that no chip has; the message lists those there are."""


@dataclass(frozen=True)
class Chip:
    """rates: operations a second by kind of work and number format. call: least seconds of one evaluation of a U-Net; start: of a job;
    read: bytes a second of weights. memory: bytes, 0 when it is not known. source: where the rates come from, in words.
    """

    name: str
    title: str
    memory: float
    rates: Mapping[str, Mapping[str, float]]
    call: float
    start: float
    read: float
    source: str
    measured: bool = False

    def seconds(self, kind: str, dtype: str, operations: float, calls: float = 0.0) -> float:
        """Seconds of work in `dtype`; `calls` of the network take at least as long as their kernels need to start."""
        known = self.rates[kind]
        return max(operations / known[dtype], calls * self.call)

    def save(self, root: Path) -> Path:
        """Keep measured rates with the project; returns the file. It takes the place of an earlier measurement of the chip."""
        from palimpsest import store

        path = root / MEASURED / f"{self.name}.json"
        with store.atomic(path) as part:
            part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path


def table() -> dict[str, Any]:
    """The committed table."""
    loaded: dict[str, Any] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return loaded


def derived(name: str) -> Chip:
    """A chip by the maker's figures and the table's shares. Raises UnknownChip."""
    known = table()
    if name not in known["chips"]:
        raise UnknownChip(
            f"device {name!r} is not known; allowed: {sorted(known['chips'])}, or `--calibrate 60` on the machine itself"
        )
    spec, shares = known["chips"][name], known["shares"]
    rates = {
        kind: {dtype: 1e12 * peak * shares[dtype][kind] for dtype, peak in spec["peak"].items()}
        for kind in KINDS
    }
    source = "derived, not measured: the maker's peak (dense) x an assumed share, " + "; ".join(
        f"{dtype} {peak:g} TFLOP/s x {shares[dtype]['sampling']:.0%} for images" for dtype, peak in spec["peak"].items()
        if dtype != "float16"
    )  # fmt: skip
    fixed = (float(known["call"]), float(known["start"]), 1e9 * known["read"])
    return Chip(name, spec["title"], 1e9 * spec["memory"], rates, *fixed, source)


def chip(name: str, root: Path) -> Chip:
    """A chip by name: as it was measured, where there is a measurement, else as derived. Raises UnknownChip."""
    path = root / MEASURED / f"{name}.json"
    if path.is_file():
        return Chip(**json.loads(path.read_text(encoding="utf-8")))
    return derived(name)


def called(title: str) -> str | None:
    """The name of the chip that a driver calls `title`."""
    for name, spec in table()["chips"].items():
        if any(mark.lower() in title.lower() for mark in spec["matches"]):
            return str(name)
    return None


def here() -> str | None:
    """The chip of this machine, of those that are known."""
    found = devices.reported()
    return called(found[0][0]) if isinstance(found, list) and found else None
