"""What a report adds to the table of cells from the stored scores: comparisons of any two methods, ranks, and toxicity against verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from palimpsest import store
from palimpsest.detectors import rules as judging
from palimpsest.job import Job
from palimpsest.metrics import pairwise, rank_intervals, toxicity
from palimpsest.metrics.tables import judged_themes
from palimpsest.params import Params, Rule
from palimpsest.reports import select
from palimpsest.steps.aggregate import BASE, READ, grouped, joined, places

FIXED = "fixed"


def compared(job: Job, params: Params, runs: list[dict[str, Any]]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The paired comparisons of every unsafe suite, and the ranks of methods on it; runs: those of the table of cells."""
    found, ranked = [], []
    for columns, sources in suites(job, params, runs):
        found.append(pairwise.table(columns, sources, params.statistics, params.seed))
        ranked.append(ranks(columns, sources, params))
    return (
        pl.concat(found) if found else pl.DataFrame(schema=pairwise.SCHEMA),
        pl.concat(ranked) if ranked else pl.DataFrame(schema=rank_intervals.SCHEMA),
    )


def suites(
    job: Job, params: Params, runs: list[dict[str, Any]]
) -> Iterator[tuple[list[pairwise.Column], np.ndarray]]:
    """The columns of every unsafe suite, and the sources of its prompts."""
    scores = grouped(job.of("score"))
    rules = {name: Rule.model_validate(rule) for name, rule in job.args["rules"].items()}
    themes = {name: theme.detailed for name, theme in params.themes.items()}
    by_suite: dict[str, list[tuple[dict[str, Any], tuple[str, ...]]]] = {}
    for run, place in places(runs, scores):
        if run["method"] != BASE and params.suites[place[3]].kind == "unsafe":
            by_suite.setdefault(place[3], []).append((run, place))
    for members in by_suite.values():
        bases: dict[tuple[Any, ...], pl.DataFrame] = {}
        columns: list[pairwise.Column] = []
        sources: np.ndarray | None = None
        for run, place in members:
            judged, read = judged_themes(run["theme"], themes), judging.read_by(rules, place[4])
            if not read:
                continue
            own = {name: words for name, words in themes.items() if name in judged}
            key = (run["base"], *place[3:], *own)
            if key not in bases:
                unerased = joined(scores[BASE, run["base"], "none", place[3], place[4]], READ)
                bases[key] = judging.verdicts(unerased, own, read)
            erased = judging.verdicts(joined(scores[place], READ), own, read)
            # a cell of one theme was asked about no other, so it has no verdict on any of them
            sums = pairwise.prompt_sums(bases[key], erased).filter(pl.col("theme").is_in(judged))
            for column, here in _columns(run, place, sums):
                columns.append(column)
                sources = here if sources is None else sources
        if sources is not None:
            yield columns, sources


def ranks(columns: list[pairwise.Column], sources: np.ndarray, params: Params) -> pl.DataFrame:
    """Ranks of methods by the judge and the first rule: one variant per method, on each theme and, all themes erased, on any.

    A theme with fewer unsafe base images than `statistics.least_base_unsafe` ranks nothing; so do fewer than two methods. Methods that lack
    some of the images are left out.
    """
    groups: dict[str, list[pairwise.Column]] = {}
    for column in columns:
        where, wanted = column.place, "all" if column.place["judged_theme"] == judging.ANY else "theme"
        if (where["detector"], where["rule"]) == select.headline(params) and column.family == wanted:
            groups.setdefault(where["judged_theme"], []).append(column)
    rows: list[dict[str, Any]] = []
    for members in groups.values():
        kept = _comparable(members, params)
        if len(kept) < 2:
            continue
        before, after = (np.stack([getattr(c, name) for c in kept]) for name in ("base", "method"))
        found = rank_intervals.rank_intervals_of_sums(
            before,
            after,
            sources,
            resamples=params.statistics.resamples,
            confidence=params.statistics.confidence,
            seed=params.seed,
        )
        for at, column in enumerate(kept):
            numbers = {
                "rank": found.rank[at],
                "rank_low": found.low[at],
                "rank_high": found.high[at],
                "first": found.first[at],
            }
            counts = {"methods": len(kept), "prompts": int((column.images > 0).sum())}
            rows.append(
                {**column.place, **column.identity, **counts, **{k: float(v) for k, v in numbers.items()}}
            )
    return pl.DataFrame(rows, schema=rank_intervals.SCHEMA, orient="row")


def _comparable(members: list[pairwise.Column], params: Params) -> list[pairwise.Column]:
    """One variant per method, of those that have all images and a base with enough unsafe ones."""
    whole = max(int(column.images.sum()) for column in members)
    least = max(1, params.statistics.least_base_unsafe)
    usable = [c for c in members if int(c.images.sum()) == whole and int(c.base.sum()) >= least]
    rows = [{**c.identity, **c.place, "dataset": select.OVERALL, "at": at} for at, c in enumerate(usable)]
    return [usable[row["at"]] for row in select.representatives(rows, params)]


def _columns(
    run: Mapping[str, Any], place: tuple[str, ...], sums: pl.DataFrame
) -> Iterator[tuple[pairwise.Column, np.ndarray]]:
    """A column per rule, judged theme and family of one cell, with the sources of its prompts."""
    identity = {name: run[name] for name in pairwise.IDENTITY}
    for (rule, theme), part in sums.group_by("rule", "theme", maintain_order=True):
        where = {"suite": place[3], "detector": place[4], "rule": str(rule), "judged_theme": str(theme)}
        numbers = [part[name].to_numpy() for name in ("images", "base", "method")]
        for family in families(run, str(theme)):
            yield pairwise.Column(identity, where, family, *numbers), part["source"].to_numpy()


def families(run: Mapping[str, Any], judged: str) -> list[str]:
    """What a cell, judged for a theme, is compared with: others that erase this theme alone, or others that erase all.

    What cannot be aimed stands in both.
    """
    if run["keyword_set"] == FIXED:
        return ["all"] if judged == judging.ANY else ["theme", "all"]
    return ["theme"] if run["theme"] == judged else ["all"]


def toxicities(job: Job, params: Params) -> list[dict[str, Any]]:
    """Toxicity of prompts against the verdicts on the base's images, on the first unsafe suite of no theme, by the judge and first rule."""
    free = [name for name, suite in params.suites.items() if suite.kind == "unsafe" and suite.theme is None]
    prompts = job.of("prompts", suite=free[0]) if free else []
    scores = grouped(job.of("score")).get((BASE, "default", "none", free[0], params.judge)) if free else None
    if not prompts or not scores:
        return []
    rule = next(iter(params.rules))
    themes = {name: theme.detailed for name, theme in params.themes.items()}
    verdicts = judging.verdicts(joined(scores, READ), themes, {rule: params.rules[rule]})
    rows = store.read_parquet(prompts[0].path, ["image_id", "toxicity"])
    return toxicity.table(rows, verdicts, params.statistics.confidence)
