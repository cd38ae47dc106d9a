"""Tables laid out as studies of concept erasure print them: one column per method, or one line per method, for one kind of variant.

The same numbers as in `tables`; only the arrangement differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from palimpsest.params import Params
from palimpsest.reports import select
from palimpsest.reports.conclusions.side_effects import benign_rows, made
from palimpsest.reports.select import ANY, EVERY_THEME, FIXED, OVERALL, Row
from palimpsest.reports.tables import Column, Table

CONCISE = "concise"


def layouts(rows: Sequence[Row], params: Params) -> list[Table]:
    """All of them that have rows, in the page's order."""
    found = [
        all_themes(rows, params),
        summary(rows, params),
        by_theme(rows, params, "keywords"),
        by_theme(rows, params, "images"),
        fixed(rows, params),
    ]
    return [table for table in found if table.rows]


def _usable(rows: Sequence[Row], params: Params) -> list[Row]:
    """EP rows on unsafe suites that belong to no single theme, data set by data set and pooled."""
    kept = select.of_kind(select.by_headline(rows, params), params, "unsafe")
    return select.on_target([row for row in kept if params.suites[row["suite"]].theme is None])


def _is_pooled(row: Row) -> bool:
    return bool(row["theme"] == EVERY_THEME and row["judged_theme"] == ANY)


def _datasets(rows: Sequence[Row], params: Params) -> list[tuple[str, str]]:
    """(suite, data set) in the order of the settings, the pooled one of each suite last."""
    present = {(row["suite"], row["dataset"]) for row in rows}
    found = []
    for name, suite in params.suites.items():
        found += [(name, source) for source in (*suite.sources, OVERALL) if (name, source) in present]
    return found


def _place(suite: str, dataset: str, places: Sequence[tuple[str, str]]) -> str:
    return dataset if len({name for name, _ in places}) == 1 else f"{suite}: {dataset}"


def _put(line: dict[str, Any], key: str, row: Row) -> None:
    line[key] = row["ep"]
    line[f"{key}_low"], line[f"{key}_high"] = row["ep_low"], row["ep_high"]
    line[f"{key}_row"] = row  # what the number is about


def _across(
    id: str, title: str, note: str, index: Sequence[Column], rows: Sequence[Row], key: Callable[[Row], tuple[Any, ...]],
    order: Callable[[tuple[Any, ...]], Any],
) -> Table:  # fmt: skip
    """One column per method; `key` gives the values of the `index` columns a row belongs to."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        place = key(row)
        named = {column.key: value for column, value in zip(index, place, strict=True)}
        line = lines.setdefault(
            place, {**named, "anchor": f"{id}-{'-'.join(map(str, place))}".replace(" ", "_")}
        )
        _put(line, row["label"], row)
    columns = [
        *index,
        *(Column(label, label, "percent", shade="good", with_interval=True) for label in labels),
    ]
    return Table(id, title, note, columns, [lines[place] for place in sorted(lines, key=order)])


def all_themes(rows: Sequence[Row], params: Params) -> Table:
    """Every method that erases all themes, by data set; an image counts as unsafe when it shows any theme."""
    pooled = [row for row in _usable(rows, params) if _is_pooled(row)]
    in_detail = {row["label"] for row in pooled if row["keyword_set"] != CONCISE}
    kept = [row for row in pooled if row["keyword_set"] != CONCISE or row["label"] not in in_detail]
    places = _datasets(kept, params)
    sequence = [_place(*place, places) for place in places]
    return _across(
        "all_themes",
        "All themes erased: EP by data set",
        "One column per method, fitted on the detailed keywords (concise ones where it has no others) or on training images of all "
        "themes. Any theme counts.",
        [Column("place", "Data set")],
        kept,
        lambda row: (_place(row["suite"], row["dataset"], places),),
        lambda place: sequence.index(place[0]),
    )


def summary(rows: Sequence[Row], params: Params) -> Table:
    """One line per method that erases all themes: EP by data set, and what became of benign prompts."""
    kept = [row for row in _usable(rows, params) if _is_pooled(row)]
    places = _datasets(kept, params)
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in kept:
        who = (row["label"], row["variant"])
        line = lines.setdefault(
            who, {"label": row["label"], "variant": row["variant"], "anchor": f"summary-{row['anchor']}"}
        )
        _put(line, _place(row["suite"], row["dataset"], places), row)
    for row in benign_rows(rows, params):
        line = lines.get((row["label"], row["variant"]), {}) if _is_pooled(row) else {}
        if line and row["n"]:
            line |= {name: row.get(name) for name in ("drift", "drift_low", "drift_high")}
            line["answered"] = made(row) / row["n"]
            line["alarms"] = row["n_unsafe"] / made(row) if made(row) else None
    columns = [
        Column("label", "Method"),
        Column("variant", "Variant"),
        *(
            Column(
                name := _place(*place, places), f"{name}, EP %", "percent", shade="good", with_interval=True
            )
            for place in places
        ),
        Column("drift", "Benign: drift", "number", 3, with_interval=True),
        Column("answered", "Benign: answered %", "percent"),
        Column("alarms", "Benign: judged unsafe %", "percent", shade="bad"),
    ]
    title = "All themes erased: erasure and what it cost benign prompts"
    note = "Drift is the root mean square pixel difference to the base image of the same prompt and seed; a withheld image is not answered."
    return Table("summary", title, note, columns, list(lines.values()))


def by_theme(rows: Sequence[Row], params: Params, kind: str) -> Table:
    """EP by theme, variant and data set, one column per method. kind: "keywords" for methods that need text only, "images" for others."""
    with_images = kind == "images"
    kept = [
        row
        for row in _usable(rows, params)
        if bool(row["training_images"]) == with_images
        and row["keyword_set"] != FIXED
        and (row["theme"] == row["judged_theme"] or _is_pooled(row))
    ]
    places = _datasets(kept, params)
    sequence = [_place(*place, places) for place in places]
    themes = [*params.themes, EVERY_THEME]
    sizes = list(
        dict.fromkeys(row["variant"] for row in sorted(kept, key=lambda r: r["training_images"] or 0))
    )
    wanted = "training images" if with_images else "keywords alone"
    return _across(
        f"by_theme_{kind}",
        f"EP by theme, variant and data set: methods that need {wanted}",
        "One column per method; each theme's variants are judged for that theme, those of all themes for any.",
        [Column("theme", "Erased"), Column("variant", "Variant"), Column("place", "Data set")],
        kept,
        lambda row: (row["theme"], row["variant"], _place(row["suite"], row["dataset"], places)),
        lambda place: (themes.index(place[0]), sizes.index(place[1]), sequence.index(place[2])),
    )


def fixed(rows: Sequence[Row], params: Params) -> Table:
    """Methods that cannot be aimed at a theme (another checkpoint, a filter, a closed service): EP by theme and data set."""
    kept = [row for row in _usable(rows, params) if row["keyword_set"] == FIXED]
    places = _datasets(kept, params)
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in kept:
        who = (row["label"], row["judged_theme"])
        line = lines.setdefault(
            who,
            {"label": row["label"], "judged_theme": row["judged_theme"], "anchor": f"fixed-{row['anchor']}"},
        )
        _put(line, _place(row["suite"], row["dataset"], places), row)
    columns = [
        Column("label", "Method"),
        Column("judged_theme", "Judged"),
        *(
            Column(name := _place(*place, places), name, "percent", shade="good", with_interval=True)
            for place in places
        ),
    ]
    note = "EP against the base model, theme by theme: dataset cleaning, safety filters and services have no theme to be aimed at."
    order = [*params.themes, ANY]
    ordered = sorted(lines, key=lambda who: (who[0], order.index(who[1])))
    return Table("fixed", "EP of what cannot be aimed at a theme", note, columns, [lines[w] for w in ordered])
