"""Tables of conclusions: levels, guidance, toxicity, and the published numbers beside an experiment that repeats the published one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsest import store
from palimpsest.params import Params
from palimpsest.reference import is_published, same_suites
from palimpsest.reports import select
from palimpsest.reports.conclusions import guidance, levels, paper
from palimpsest.reports.conclusions.study import QUALITY, Study
from palimpsest.reports.measures import PUBLISHED
from palimpsest.reports.select import Row
from palimpsest.reports.tables import Column, Table

OPEN = "?"


def levels_table(study: Study) -> Table:
    """One line per method, one column per criterion that was measured; levels that the intervals do not decide have a question mark."""
    found = [one for one in levels.levels(study) if one.standings]
    lines: dict[str, dict[str, Any]] = {}
    for one in found:
        for standing in one.standings:
            line = lines.setdefault(
                standing.label, {"label": standing.label, "anchor": f"levels-{len(lines)}"}
            )
            line[one.criterion] = f"{standing.level}{OPEN if standing.decided is False else ''}"
    columns = [Column("label", "Method"), *(Column(one.criterion, one.title) for one in found)]
    note = (
        "Level 1: the best three methods by the mean over their variants; level 3: the worst three; 2: those between. A question mark: the "
        "intervals allow another level. Criteria without intervals have none. A dash: not measured, or it does not apply."
    )
    return Table("levels", "Levels by criterion", note, columns, list(lines.values()))


def guidance_table(study: Study) -> Table:
    """One line per scenario."""
    lines = [
        {
            "scenario": one.scenario.capitalize(),
            "methods": ", ".join(one.methods) or ("none" if not one.missing else ""),
            "rivals": ", ".join(one.rivals),
            "rule": f"Nothing can be said: {one.missing}." if one.missing else one.rule,
            "anchor": f"guidance-{place}",
        }
        for place, one in enumerate(guidance.guidance(study))
    ]
    columns = [
        Column("scenario", "Where what counts is"),
        Column("methods", "Methods"),
        Column("rivals", "Not told apart from them"),
        Column("rule", "Rule"),
    ]
    note = "What these results recommend, by the fixed rules in the last column."
    return Table("guidance", "Which method for which purpose", note, columns, lines)


def toxicity_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Shares of unsafe images of the base by toxicity of the prompt."""
    lines = [{**row, "anchor": f"toxicity-{place}"} for place, row in enumerate(rows)]
    columns = [
        Column("theme", "Judged"),
        Column("dataset", "Data set"),
        Column("bin", "Toxicity"),
        Column("share", "Unsafe %", "percent", shade="bad", with_interval=True),
        Column("n_unsafe", "Unsafe", "count"),
        Column("n", "Images", "count"),
        Column("n_prompts", "Prompts", "count"),
        Column("correlation", "Rank correlation", "number", 2, with_interval=True),
    ]
    note = (
        "Images of the unchanged model by the toxicity that the prompt tables give their prompts. The correlation is Spearman's, over "
        "prompts, between toxicity and the share of a prompt's images that the judge finds unsafe."
    )
    return Table("toxicity", "Toxic prompts and unsafe images", note, columns, lines)


def beside_table(rows: Sequence[Row], params: Params, reference: Path | None) -> Table:
    """Ours beside the published numbers, row by row; empty unless the experiment is the published one (`reference.is_published`).

    rows: those of the study, which hold the measures of quality; each stands beside the published column that was computed in the same way.
    """
    columns = [
        Column("label", "Method"),
        Column("theme", "Erased"),
        Column("variant", "Variant"),
        Column("suite", "Suite"),
        Column("dataset", "Data set"),
        Column("measure", "Measure"),
        Column("ours", "Here", "number", 2, with_interval=True),
        Column("published", "Published", "number", 2, with_interval=True),
        Column("difference", "Here less published", "number", 2),
        Column("n", "n here", "count"),
        Column("published_n", "n published", "count"),
    ]
    note = (
        "EP, GRD: percent. This experiment has the published study's model, themes, keywords and judge; only suites with the same rows are "
        "shown. Prompts that the gate excludes are missing here, which the two n tell. Published intervals come from recovered "
        "counts and take base and method as independent."
    )
    lines = []
    if reference is not None and is_published(params, reference.parent.parent):
        study = paper.load(reference, appendix=True)
        suites = same_suites(params, store.read_json(reference / "study.json"))
        published = {_key(row): row for row in study.rows if row["suite"] in suites}
        for row in select.by_headline(rows, params):
            other = published.get(_key(row))
            if other and not row["is_base"]:
                lines += _lines(row, other)
    return Table("beside", "Beside the published numbers", note, columns, lines)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("method", "preset", "theme", "suite", "dataset", "judged_theme")
    # the appendix does not say what its three methods were given: theirs is the only variant of all themes
    given = row.get("training_images") or row["keyword_set"] if row["method"] not in paper.UNSAID else None
    return (*(row[name] for name in names), given)


def _lines(row: Row, other: Row) -> list[dict[str, Any]]:
    found = []
    for key in ("ep", "grd", *QUALITY):
        here = PUBLISHED.get(key, key)
        ours, theirs = row.get(here), other.get(key)
        if ours is None or theirs is None:
            continue
        scale = 100 if key in ("ep", "grd") else 1
        line = {name: row[name] for name in ("label", "theme", "variant", "suite", "dataset", "n")}
        line |= {"measure": key.upper(), "anchor": f"beside-{key}-{row['anchor']}", "published_n": other["n"]}
        for name, source, column in (("ours", row, here), ("published", other, key)):
            for side in ("", "_low", "_high"):
                value = source.get(f"{column}{side}")
                line[f"{name}{side}"] = None if value is None else scale * value
        found.append({**line, "difference": scale * (ours - theirs)})
    return found
