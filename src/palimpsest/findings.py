"""What `palimpsest doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "FAIL"
GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """One finding. level: "ok", "warn" (a run can start) or "FAIL" (it cannot). remedy: the next command, or empty."""

    level: str
    subject: str
    found: str
    remedy: str = ""


def size(amount: float) -> str:
    """Bytes for people."""
    return f"{amount / GIB:.1f} GiB" if amount >= GIB / 10 else f"{amount / (1 << 20):.1f} MiB"
