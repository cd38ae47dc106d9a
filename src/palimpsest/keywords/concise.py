"""Concise keyword sets: the smallest set of a theme's keywords that still covers the theme, from a
cross-suppression matrix.

The matrix holds, for every erased keyword (row) and every prompted keyword (column), the erasure proportion
in percent: how much erasing the one suppresses prompts about the other. The paper (Appendix C, Table 8)
measures it with SD-NP and names the sets it chose, but no rule. The rule here is stated, has one threshold,
and returns the paper's sets:

1. A set covers a keyword when erasing some member suppresses it by at least `threshold` percent, or at least
   as much as erasing that very keyword does: need(p) = min(threshold, EP[p, p]). The second half is there
   because no set can be asked for more than the keyword itself achieves ("human flesh" reaches only 47.37 on
   its own prompts).
2. A keyword needs no cover when it was never drawn (a column of blanks: nothing to erase) or when erasing it
   does not suppress it.
3. The concise set is the smallest set that covers every keyword that needs it. Among sets of that size the
   one with the largest mean of the best suppression of each keyword wins ({horror, human flesh} over {exposed
   bone, human flesh}); then the one that comes first in the order of the matrix, in which the theme word
   stands first.

On Table 8 every threshold above 38.89 and up to 70 gives the paper's three sets; the default, 50, lies in the
middle.

Relations follow the same cover: a > b when a covers b and b does not cover a, or both do and a suppresses b
by more than MARGIN points beyond what b does to a; a ≈ b when both cover each other within MARGIN.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

THRESHOLD = 50.0
MARGIN = 10.0
BLANK = math.nan


class BadMatrix(ValueError):
    """A suppression matrix that cannot be used; the message lists every problem."""


@dataclass(frozen=True)
class Matrix:
    """Erasure proportions in percent, ep[erased][prompted], both in the order of `keywords`; NaN where
    nothing was drawn."""

    keywords: tuple[str, ...]
    ep: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        problems = _faults(self.keywords, self.ep)
        if problems:
            raise BadMatrix("; ".join(problems))


def _faults(keywords: Sequence[str], ep: Sequence[Sequence[float]]) -> list[str]:
    size = len(keywords)
    if not size:
        return ["no keyword: give at least one row and one column"]
    if len(ep) != size or any(len(row) != size for row in ep):
        return [
            f"not square: {size} keywords, {len(ep)} rows of {sorted({len(row) for row in ep})} values. "
            f"Give every pair"
        ]
    problems = []
    if len(set(keywords)) != size:
        problems.append(
            f"keywords are given twice: {sorted({k for k in keywords if keywords.count(k) > 1})}. Keep one "
            f"of each"
        )
    for column, prompted in enumerate(keywords):
        values = [row[column] for row in ep]
        blank = [keywords[i] for i, value in enumerate(values) if math.isnan(value)]
        if blank and len(blank) < size:
            problems.append(
                f"prompts about {prompted!r} have no value for erased {blank} but have values for others. "
                "Fill them in, or leave the whole column blank when the base model never draws it"
            )
        large = [
            f"{keywords[i]}: {value:g}" for i, value in enumerate(values) if value > 100 or math.isinf(value)
        ]
        if large:
            problems.append(
                f"prompts about {prompted!r} have proportions above 100 percent ({', '.join(large)})"
            )
    return problems


def _file_faults(ep: Sequence[Sequence[float]]) -> list[str]:
    """What is legal in a measured matrix and a mistake in a written one."""
    known = [abs(value) for row in ep for value in row if not math.isnan(value)]
    if not known:
        return [
            "every value is blank: the base model draws none of the keywords, so there is nothing to cover"
        ]
    if 0 < max(known) <= 1:
        return [
            f"the largest value is {max(known):g}: these look like fractions. Give percent (multiply by 100)"
        ]
    return []


def _need(matrix: Matrix, threshold: float) -> dict[int, float]:
    own = {i: matrix.ep[i][i] for i in range(len(matrix.keywords))}
    return {i: min(threshold, value) for i, value in own.items() if value > 0}


def coverage(matrix: Matrix, threshold: float = THRESHOLD) -> dict[str, set[str]]:
    """Erased keyword -> the keywords it covers, itself included when it needs cover."""
    need = _need(matrix, threshold)
    names = matrix.keywords
    return {name: {names[p] for p in need if matrix.ep[e][p] >= need[p]} for e, name in enumerate(names)}


def _gain(matrix: Matrix, members: Sequence[int]) -> float:
    """Mean over prompted keywords of the best suppression any member reaches, in percent."""
    best = [
        max(matrix.ep[e][p] for e in members)
        for p in range(len(matrix.keywords))
        if not math.isnan(matrix.ep[0][p])
    ]
    return round(sum(best) / len(best), 9) if best else 0.0


def concise_sets(matrix: Matrix, threshold: float = THRESHOLD) -> list[str]:
    """The concise keyword set of one theme, in the order of the matrix. Rule: see the module. Raises
    ValueError for a threshold outside 0 to 100."""
    if not 0 <= threshold <= 100:
        raise ValueError(f"threshold is {threshold}; allowed: 0 to 100 percent")
    names, covered = matrix.keywords, coverage(matrix, threshold)
    wanted = set().union(*covered.values())
    # a keyword that only one erasure covers forces that one into every cover: exact, and keeps the search
    # small
    forced = {
        e
        for e, name in enumerate(names)
        for p in covered[name]
        if sum(p in other for other in covered.values()) == 1
    }
    free = [e for e in range(len(names)) if e not in forced]
    for extra in range(len(free) + 1):
        sets = [sorted({*forced, *more}) for more in combinations(free, extra)]
        covers = [s for s in sets if s and set().union(*(covered[names[e]] for e in s)) >= wanted]
        if covers:
            best = max(covers, key=lambda s: (_gain(matrix, s), [-e for e in s]))
            return [names[e] for e in best]
    raise AssertionError("a keyword that needs cover covers itself, so all keywords together are a cover")


def relations(matrix: Matrix, threshold: float = THRESHOLD) -> list[tuple[str, str, str]]:
    """Pairs (a, ">" or "≈", b) in the order of the matrix. Pairs in which neither covers the other are left
    out."""
    covered, names, found = coverage(matrix, threshold), matrix.keywords, []
    for i, j in combinations(range(len(names)), 2):
        a, b = names[i], names[j]
        forward, back = b in covered[a], a in covered[b]
        lead = matrix.ep[i][j] - matrix.ep[j][i]
        if forward and back and abs(lead) <= MARGIN:
            found.append((a, "≈", b))
        elif forward and (not back or lead > MARGIN):
            found.append((a, ">", b))
        elif back:
            found.append((b, ">", a))
    return found


def _percent(text: str) -> float:
    text = text.strip().removesuffix("%").strip()
    return BLANK if not text else float(text)


def read_matrices(path: str | Path) -> dict[str, Matrix]:
    """Read a CSV of suppression matrices: theme -> matrix.

    Header: `erased` (any name) then one column per prompted keyword; with a first column `theme` the file
    holds one block per theme, and cells of other themes' keywords are not used. Without it there is one
    theme, named "". Cells: percent, with or without %. Raises BadMatrix naming the file, the line and the
    cell of every problem.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            records = [
                (reader.line_num, [cell.strip() for cell in record])
                for record in reader
                if any(c.strip() for c in record)
            ]
    except FileNotFoundError:
        raise BadMatrix(
            f"{path}: no such file. Give the path of a CSV with one row per erased keyword"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadMatrix(f"{path}: not readable as UTF-8 CSV: {error}") from error
    if len(records) < 2:
        raise BadMatrix(
            f"{path}: expected a header of prompted keywords and one row per erased keyword, found "
            f"{len(records)} line(s)"
        )
    header = records[0][1]
    lead = 2 if header[0].lower() == "theme" else 1
    problems: list[str] = []
    blocks: dict[str, dict[str, tuple[int, dict[str, str]]]] = {}
    for line, cells in records[1:]:
        if len(cells) != len(header):
            problems.append(f"{path}: line {line}: {len(cells)} cells where the header has {len(header)}")
            continue
        block = blocks.setdefault(cells[0] if lead == 2 else "", {})
        if cells[lead - 1] in block:
            problems.append(f"{path}: line {line}: erased keyword {cells[lead - 1]!r} is given twice")
        block[cells[lead - 1]] = (line, dict(zip(header[lead:], cells[lead:], strict=True)))
    matrices = {
        theme: _matrix(path, theme, block, header[lead:], problems) for theme, block in blocks.items()
    }
    if problems:
        raise BadMatrix("\n".join(problems))
    return {theme: matrix for theme, matrix in matrices.items() if matrix is not None}


def _matrix(
    path: str | Path,
    theme: str,
    block: dict[str, tuple[int, dict[str, str]]],
    columns: Sequence[str],
    problems: list[str],
) -> Matrix | None:
    names, where, before = tuple(block), f"{path}" + (f": theme {theme!r}" if theme else ""), len(problems)
    missing = [name for name in names if name not in columns]
    if missing:
        problems.append(
            f"{where}: erased keywords {missing} have no column; the columns are {list(columns)}. Rows and "
            f"columns must match"
        )
        return None
    spare = [name for name in columns if name not in names]
    if not theme and spare:
        problems.append(
            f"{where}: columns {spare} have no row; the rows are {list(names)}. Rows and columns must match"
        )
    rows = []
    for name, (line, cells) in block.items():
        row = []
        for prompted in names:
            try:
                row.append(_percent(cells[prompted]))
            except ValueError:
                problems.append(
                    f"{where}: line {line}: {cells[prompted]!r} (erased {name!r}, prompts about "
                    f"{prompted!r}) is no number"
                )
                row.append(BLANK)
        rows.append(tuple(row))
    if len(problems) > before:
        return None
    faults = _faults(names, rows) or _file_faults(rows)
    problems += [f"{where}: {fault}" for fault in faults]
    return None if faults else Matrix(names, tuple(rows))


def read_matrix(path: str | Path) -> Matrix:
    """Read a CSV that holds one matrix. Raises BadMatrix when it holds several."""
    matrices = read_matrices(path)
    if len(matrices) != 1:
        raise BadMatrix(f"{path}: holds the matrices of {list(matrices)}; read_matrices reads them all")
    return next(iter(matrices.values()))


def write_matrices(matrices: dict[str, Matrix], path: str | Path) -> None:
    """Write matrices in the format of `read_matrices`, one block per theme, values with two decimals."""
    columns = list(dict.fromkeys(name for matrix in matrices.values() for name in matrix.keywords))
    rows: list[list[str]] = [["theme", "erased", *columns]]
    for theme, matrix in matrices.items():
        for name, values in zip(matrix.keywords, matrix.ep, strict=True):
            cells = dict(zip(matrix.keywords, values, strict=True))
            texts = ["" if math.isnan(cells.get(c, BLANK)) else f"{cells[c]:.2f}" for c in columns]
            rows.append([theme, name, *texts])
    with open(path, "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerows(rows)


def main_table(path: str | Path, threshold: float = THRESHOLD) -> str:
    """What `palimpsest concise-sets` prints for a matrix file: per theme the concise set, the relations and
    what covers what."""
    parts = []
    for theme, matrix in read_matrices(path).items():
        chosen = concise_sets(matrix, threshold)
        need = _need(matrix, threshold)
        lines = [f"{theme or Path(path).stem}: {{{', '.join(chosen)}}}"]
        for p, name in enumerate(matrix.keywords):
            if p not in need:
                own = matrix.ep[p][p]
                why = "never drawn" if math.isnan(own) else f"erasing it suppresses {own:.2f} %"
                lines.append(f"  {name}: needs no cover ({why})")
                continue
            best = max(chosen, key=lambda word: matrix.ep[matrix.keywords.index(word)][p])
            value = matrix.ep[matrix.keywords.index(best)][p]
            lines.append(f"  {name}: covered by {best} ({value:.2f} % of at least {need[p]:.2f} %)")
        pairs = relations(matrix, threshold)
        lines.append("  relations: " + (", ".join(f"{a} {sign} {b}" for a, sign, b in pairs) or "none"))
        parts.append("\n".join(lines))
    return (
        "\n\n".join(parts)
        + f"\n\nthreshold {threshold:g} %: a keyword is covered at the threshold, or at what erasing it "
        f"reaches itself\n"
    )
