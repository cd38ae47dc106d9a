"""What is wrong with prompt files: errors that stop an ingestion, all in one message, and warnings that are
counted and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SHOWN = 20


class BadPrompts(ValueError):
    """Prompt files that cannot be used; the message lists every problem with file, row and remedy."""


@dataclass(frozen=True)
class Row:
    """One data row: `number` counts rows from 1 without the header, `line` is where it begins in the file;
    cells by column name."""

    number: int
    line: int
    cells: dict[str, str]


@dataclass
class Log:
    """Collects the problems and the warnings of one source of a suite."""

    source: str
    file: str
    errors: list[str] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)

    def error(self, text: str) -> None:
        """An error about the file as a whole."""
        self.errors.append(f"{self.file} (source {self.source}): {text}")

    def row_errors(self, found: Sequence[tuple[Row, str]], remedy: str) -> None:
        """Errors of single rows: one line each, then the numbers of the rest, then what to do."""
        for row, text in found[:SHOWN]:
            self.error(f"row {row.number} (line {row.line}): {text}. {remedy}")
        if len(found) > SHOWN:
            rest = ranges([row.number for row, _ in found[SHOWN:]])
            self.error(f"{len(found) - SHOWN} more row(s) like the one above: rows {rest}. {remedy}")

    def warn(self, kind: str, rows: Sequence[int], message: str) -> None:
        """A counted warning; rows are data row numbers. Messages never contain prompt text."""
        if rows:
            self.warnings.append(
                {
                    "source": self.source,
                    "file": self.file,
                    "kind": kind,
                    "count": len(rows),
                    "rows": list(rows),
                    "message": message,
                }
            )


def ranges(numbers: Sequence[int]) -> str:
    """Row numbers in short: "3, 5-9, 12"."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
