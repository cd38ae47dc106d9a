"""The images behind a cell of a table: one light page beside the report, and data with a contact sheet for every variant and suite.

The page asks for the files of one cell only, when a link to it is followed. It works from a folder as well as from a server.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from palimpsest import store
from palimpsest.params import Params
from palimpsest.reports import pairs, select
from palimpsest.reports.select import Row

if TYPE_CHECKING:
    import polars as pl

CELLS, SHEETS, PAGE = "cells", "sheets", "images.html"
SHOWN = ("image_id", "source", "prompt", "seed", "decision", "reason")


@dataclass(frozen=True)
class Drill:
    """What was written. names: identity and suite -> name of the cell's files. titles: suite -> name -> what the cell is, in words."""

    names: Mapping[pairs.Key, str]
    titles: Mapping[str, Mapping[str, str]]

    def link(self, row: Mapping[str, Any]) -> str:
        """Where the images of a row are shown, narrowed to its theme and data set; "" where there are none."""
        if "suite" not in row or "method" not in row:
            return ""
        name = self.names.get(pairs.identity_key(row))
        if name is None:
            return ""
        narrowed = [row.get("judged_theme") or "", row.get("dataset") or ""]
        narrowed = ["" if part in (select.OVERALL, select.ANY) else quote(part, safe="") for part in narrowed]
        return f"{PAGE}#{'/'.join([name, *narrowed]).rstrip('/')}"


def name_of(key: pairs.Key) -> str:
    """The name of a cell's files: readable, and different for different cells."""
    text = ".".join(str(part) for part in key if part)
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", text)
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def bases(
    comparisons: Iterable[tuple[Mapping[str, Any], Path]], rows: Sequence[Row], scores: pairs.Files
) -> dict[pairs.Key, pairs.Key]:
    """A compared cell -> the base it was compared with, where its identity names one by its preset (`base`)."""
    names = {row["method"] for row in rows if row["is_base"]}
    known = {(key[1], key[-1]): key for key in scores if key[0] in names}
    found = {}
    for identity, _ in comparisons:
        base = known.get((identity.get("base"), identity.get("suite")))
        if base is not None:
            found[pairs.identity_key(identity)] = base
    return found


def write(
    rows: Sequence[Row],
    params: Params,
    comparisons: pairs.Files,
    scores: pairs.Files,
    bases: Mapping[pairs.Key, pairs.Key],
    folder: Path,
) -> Drill:
    """Write the data of every compared cell. rows: those of the table; bases: a cell's own base, where it is not the first one."""
    known = {pairs.identity_key(row): row for row in rows if select.is_ok(row)}
    names: dict[pairs.Key, str] = {}
    titles: dict[str, dict[str, str]] = {}
    for name in (CELLS, SHEETS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    written: dict[tuple[Any, ...], str] = {}
    for key, paths in comparisons.items():
        base = bases.get(key) or pairs.base_key(scores, key[-1], rows)
        if base is None or key not in known or key not in scores:
            continue
        shown = _shown(paths)
        suite_key = (key[-1], base, tuple(shown["image_id"].to_list()))
        if suite_key not in written:
            written[suite_key] = _write_suite(len(written), suite_key, shown, scores[base], params, folder)
        names[key] = name_of(key)
        data = _cell(known[key], shown, paths, scores[key], params, folder) | {"suite": written[suite_key]}
        titles.setdefault(key[-1], {})[names[key]] = data["title"]
        _write(data, folder / CELLS / f"{names[key]}.js")
    return Drill(names, titles)


def title_of(row: Row) -> str:
    """A cell in words: the method, what it erases, the variant."""
    erased = {"": "", "all": "erasing all themes"}.get(row["theme"] or "", f"erasing {row['theme']}")
    return ", ".join(part for part in (row["label"], erased, row["variant"]) if part)


def _shown(paths: Sequence[Path]) -> pl.DataFrame:
    """Every image of a cell with its prompt, seed, decision and place on a sheet, the shards in order."""
    import polars as pl
    import pyarrow.parquet as pq

    parts = []
    for shard, path in enumerate(paths):
        present = set(pq.read_schema(path).names)
        frame = store.read_parquet(path, columns=[name for name in (*SHOWN, "place") if name in present])
        if "place" not in present:
            frame = frame.with_columns(place=pl.lit(None, pl.Int64))
        parts.append(frame.with_columns(shard=pl.lit(shard), place=pl.col("place").cast(pl.Int64)))
    return pl.concat(parts)


def _judged(
    paths: Sequence[Path], themes: Iterable[str], ids: pl.DataFrame, params: Params
) -> dict[str, list[Any]]:
    """{theme: [score and verdict per image]} by the judge and the first rule; null where there is no image."""
    import polars as pl

    from palimpsest.detectors import rules as judging

    name = select.headline(params)[1]
    own = {theme: params.themes[theme].detailed for theme in themes}
    scored = pl.concat([store.read_parquet(path) for path in paths])
    for column in judging.KEYS:
        if column not in scored.columns:
            scored = scored.with_columns(pl.lit(None).alias(column))
    found = judging.verdicts(scored, own, {name: params.rules[name]})
    out = {}
    for theme in own:
        here = ids.join(
            found.filter(pl.col("theme") == theme), on="image_id", how="left", maintain_order="left"
        )
        pairs_of = zip(here["score"].to_list(), here["unsafe"].to_list(), strict=True)
        out[theme] = [
            None if unsafe is None else [round(score, 3), int(unsafe)] for score, unsafe in pairs_of
        ]
    return out


def _write_suite(
    number: int,
    key: tuple[Any, ...],
    shown: pl.DataFrame,
    paths: Sequence[Path],
    params: Params,
    folder: Path,
) -> str:
    """What the cells of one suite have in common: prompts, seeds, and what the judge says of the base's images."""
    name = f"suite-{number}-{re.sub(r'[^A-Za-z0-9_-]+', '_', key[0])}"
    ids = shown.select("image_id")
    columns: dict[str, Any] = {
        column: shown[column].to_list()
        for column in ("image_id", "source", "prompt", "seed")
        if column in shown.columns
    }
    data: dict[str, Any] = {
        "name": name,
        "title": key[0],
        **columns,
        "base": _judged(paths, params.themes, ids, params),
    }
    _write(data, folder / CELLS / f"{name}.js")
    return name


def _cell(
    row: Row, shown: pl.DataFrame, paths: Sequence[Path], scores: Sequence[Path], params: Params, folder: Path
) -> dict[str, Any]:
    """The data of one cell."""
    themes = [row["theme"]] if row["theme"] in params.themes else list(params.themes)
    notes: dict[int, str] = {
        at: ": ".join(str(part) for part in (pairs.NO_IMAGE.get(decision, decision), reason) if part)
        for at, (decision, reason) in enumerate(shown.select("decision", "reason").iter_rows())
        if decision not in ("generated", "made")
    }
    return {
        "name": row["label"],
        "title": title_of(row),
        "themes": themes,
        "scores": _judged(scores, themes, shown.select("image_id"), params),
        "notes": notes,
        "sheets": [_sheets(path, folder) for path in paths],
        "shard": shown["shard"].to_list() if len(paths) > 1 else [],
        "place": shown["place"].to_list(),
    }


def _sheets(path: Path, folder: Path) -> list[str]:
    """The contact sheets of a shard, before and after, as files named by their content; "" where there is none."""
    import pyarrow.parquet as pq

    found = []
    with pq.ParquetFile(path) as file:
        for column in ("sheet_before", "sheet_after"):
            cell = None
            if column in file.schema_arrow.names and file.metadata.num_row_groups:
                cell = file.read_row_group(0, columns=[column]).column(column)[0].as_py()
            if not cell or not cell.get("bytes"):
                found.append("")
                continue
            name = f"{hashlib.sha256(cell['bytes']).hexdigest()[:16]}.jpg"
            target = folder / SHEETS / name
            if not target.exists():
                target.write_bytes(cell["bytes"])
            found.append(name)
    return found


def _write(data: Mapping[str, Any], path: Path) -> None:
    """Data as a script that hands it to the page: a folder opened in a browser may load scripts, but not read files."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    path.write_text(f"arrived({text});\n", encoding="utf-8")
