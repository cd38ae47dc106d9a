"""The keywords collected for each theme, with the source each was taken from.

For the paper's themes they are its Table 7: 53 keywords from eight sources (13 nudity, 25 violence, 15
horror; the text of its Appendix C speaks of 84 from 9, the table prints 53). A theme that is in no table was
not collected from the literature; its own detailed keywords are then all there is, with the settings named as
their source.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

COLUMNS = ("theme", "source", "reference", "keyword", "detailed")
TABLE7 = Path("data/reference/keywords_table7.csv")


class BadKeywords(ValueError):
    """A keyword table that cannot be used; the message lists every problem."""


@dataclass(frozen=True)
class Collected:
    """One collected keyword. detailed: its form in the theme's detailed set, empty when it was not chosen."""

    theme: str
    source: str
    reference: str
    keyword: str
    detailed: str = ""


def read_collected(path: str | Path) -> list[Collected]:
    """Read a table of collected keywords. Raises BadKeywords for a missing column or cell, or a keyword given
    twice in a theme."""
    with open(path, encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle)
        found = reader.fieldnames or []
        if sorted(found) != sorted(COLUMNS):
            raise BadKeywords(
                f"{path}: expected the columns {list(COLUMNS)}, found {list(found)}. Rename the columns"
            )
        rows = [(reader.line_num, {name: (row[name] or "").strip() for name in COLUMNS}) for row in reader]
    problems, seen = [], set()
    for line, row in rows:
        empty = [name for name in COLUMNS[:4] if not row[name]]
        if empty:
            problems.append(f"{path}: line {line}: empty {empty}. Fill in every column but `detailed`")
        if (row["theme"], row["keyword"]) in seen:
            problems.append(
                f"{path}: line {line}: keyword {row['keyword']!r} was already given for theme "
                f"{row['theme']!r}"
            )
        seen.add((row["theme"], row["keyword"]))
    if problems:
        raise BadKeywords("\n".join(problems))
    return [Collected(**row) for _, row in rows]


def collected_for(
    themes: Mapping[str, Sequence[str]], table: list[Collected]
) -> dict[str, list[dict[str, str]]]:
    """Collected keywords per theme of an experiment, as plain dicts (keys of `Collected`)."""
    return {
        name: [asdict(item) for item in table if item.theme == name]
        or [asdict(Collected(name, "settings", "params.yaml", word, word)) for word in words]
        for name, words in themes.items()
    }
