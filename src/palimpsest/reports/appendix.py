"""The parts of a report that stand behind the results: gates, benchmarks, environments, keyword sets, methods, glossary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.reports.tables import Column, Table

GLOSSARY = (
    ("Theme", "What is to be erased: a concept with several keywords."),
    ("Detailed and concise set", "All keywords of a theme; the fewest that suppress the others too (by cross-suppression)."),
    ("Variant", "What a method was fitted on: a theme (or all) with a keyword set or a number of training images."),
    ("Suite, data set", "A table of prompts with seeds, and one of the sources it is made of."),
    ("Base", "The model before anything was erased. Its images and those of a method share prompt, seed and sampler, so they are pairs."),
    ("Erasure proportion (EP)", "(unsafe before - unsafe after) / unsafe before. 100 %: all erased; 0: nothing; below 0: more."),
    ("Suppressed", "Of the images unsafe before, the share that is safe after."),
    ("Induced", "Of the images safe before, the share that is unsafe after; the judge's own slips are part of it."),
    ("Answered", "The share of prompts that got an image, not blocked, withheld or refused. Without one a prompt counts as safe in EP."),
    ("Drift", "Root mean square difference of pixels (0 to 1) to the base image of the same prompt and seed."),
    ("Interval", "Bootstrap over prompts, not images, because images of one prompt resemble each other."),
    ("Cannot be told apart", "The interval of the difference contains 0. It does not mean that the two are equal."),
    ("p (Holm)", "Exact McNemar test against the base on the same images, corrected for all tests of the table by Holm's method."),
)  # fmt: skip


@dataclass(frozen=True)
class KeywordRow:
    """The keyword sets of a theme. matrix: as stored, or None."""

    theme: str
    detailed: Sequence[str]
    concise: Sequence[str]
    matrix: Any


def keyword_rows(keywords: Mapping[str, Any]) -> list[KeywordRow]:
    """The keyword sets of all themes."""
    themes = keywords.get("themes", keywords)
    return [
        KeywordRow(
            theme, list(found.get("detailed", ())), list(found.get("concise", ())), found.get("matrix")
        )
        for theme, found in themes.items()
    ]


def matrix_of(row: KeywordRow) -> tuple[list[str], list[list[float | None]]] | None:
    """Keywords and suppression in percent [erased][prompted]; None when there is none.

    Raises ValueError when a matrix given as lists does not fit the detailed keywords.
    """
    if not row.matrix:
        return None
    names = list(row.detailed)
    if isinstance(row.matrix, Mapping):
        names = names or list(row.matrix)
        return names, [[(row.matrix.get(a) or {}).get(b) for b in names] for a in names]
    if len(row.matrix) != len(names) or any(len(line) != len(names) for line in row.matrix):
        raise ValueError(
            f"the suppression matrix of {row.theme!r} must be {len(names)} by {len(names)}, as its keywords {names}"
        )
    return names, [list(line) for line in row.matrix]


def _gates(found: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    for name, gate in found.items():
        if isinstance(gate, Mapping) and "value" in gate:
            yield {"name": " / ".join([*path, name]).replace("_", " "), **gate}
        elif isinstance(gate, Mapping):
            yield from _gates(gate, (*path, str(name)))


def gates_table(gates: Mapping[str, Any] | None) -> Table | None:
    """The checks the micro world has to pass before its numbers mean anything."""
    rows = []
    for place, gate in enumerate(_gates(gates or {})):
        verdict = "not judged" if gate.get("passed") is None else "passed" if gate["passed"] else "FAILED"
        sign = {"min": "at least", "max": "at most"}.get(gate.get("direction", ""), "limit")
        limit = f"{sign} {gate['limit']:g}" if isinstance(gate.get("limit"), int | float) else ""
        rows.append(
            {
                **gate,
                "limit": limit,
                "verdict": verdict,
                "anchor": f"gate-{place}",
                "bad": gate.get("passed") is False,
            }
        )
    columns = [
        Column("name", "Check"), Column("value", "Value", "number", 3, with_interval=True), Column("limit", "Limit"),
        Column("n", "n", "count"), Column("verdict", "Verdict"),
    ]  # fmt: skip
    note = "Measured on direct prompts, benign captions and held-out renders, where the truth is exact."
    return Table("gates", "Gates of the micro world", note, columns, rows) if rows else None


def flat(found: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; lists become text."""
    out: dict[str, Any] = {}
    for name, value in found.items():
        key = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping):
            out |= flat(value, key)
        else:
            out[key] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return out


def benchmark_table(benchmarks: Mapping[str, Any] | None) -> Table | None:
    """Measured speed, as the benchmark scripts wrote it."""
    rows = [
        {
            "name": name,
            "value": f"{value:.4g}" if isinstance(value, float) else str(value),
            "anchor": f"benchmark-{place}",
        }
        for place, (name, value) in enumerate(flat(benchmarks or {}).items())
    ]
    columns = [Column("name", "Measurement"), Column("value", "Value")]
    return (
        Table("benchmarks", "Speed", "Written by the scripts in benchmarks/.", columns, rows)
        if rows
        else None
    )


def mixed(environments: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the artifacts were made in more than one environment."""
    return len({tuple(sorted((k, str(v)) for k, v in flat(found).items())) for found in environments}) > 1


def environment_table(environments: Sequence[Mapping[str, Any]]) -> Table | None:
    """Versions and hardware: a column per environment; lines that differ are marked."""
    flats = [flat(found) for found in environments]
    names = list(dict.fromkeys(name for found in flats for name in found))
    rows = []
    for place, name in enumerate(names):
        values = [str(found[name]) if name in found else "–" for found in flats]
        same = len(set(values)) == 1
        row = {
            "name": name,
            "anchor": f"environment-{place}",
            "same": "" if same else "differs",
            "bad": not same,
        }
        rows.append({**row, **{f"e{i}": value for i, value in enumerate(values)}})
    columns = [Column("name", "What"), *(Column(f"e{i}", f"Environment {i + 1}") for i in range(len(flats)))]
    if len(flats) > 1:
        columns.append(Column("same", "Same?"))
    return (
        Table("environment", "Environment", "Read from the artifacts themselves.", columns, rows)
        if rows
        else None
    )


def method_facts(info: Mapping[str, Any]) -> dict[str, str]:
    """A method's metadata with a text for every field the page shows."""
    return {
        key: str(info.get(key) or "")
        for key in ("name", "title", "stage", "trains", "fidelity", "licence", "paper", "code", "bibtex")
    }
