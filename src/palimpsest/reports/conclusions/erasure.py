"""Sentences that the numbers bear out, each by a stated rule and with its evidence.

No sentence asserts a difference whose interval covers zero; it then says that the two cannot be told apart. Intervals of differences
come from `palimpsest.reports.intervals`. A rule whose data are missing says nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from palimpsest.reports import select
from palimpsest.reports.conclusions.study import Study
from palimpsest.reports.evidence import (
    Level,
    Takeaway,
    count,
    estimate,
    from_estimate,
    from_row,
    listed,
    name,
    percent,
    points,
    refusing,
)
from palimpsest.reports.intervals import difference, mean
from palimpsest.reports.select import Row


def by_theme(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows per (suite, judged theme)."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["suite"], row["judged_theme"]].append(row)
    return groups


def best_per_method(rows: Sequence[Row]) -> list[Row]:
    """The best variant of each method and preset, best first; ties keep the order of the rows."""
    best: dict[str, Row] = {}
    for row in rows:
        if row["label"] not in best or row["ep"] > best[row["label"]]["ep"]:
            best[row["label"]] = row
    return sorted(best.values(), key=lambda row: -row["ep"])


def best_methods(study: Study) -> list[Takeaway]:
    """The best method of each theme, and whether the runner-up can be told apart from it."""
    rows, params = study.rows, study.setting
    rule = (
        "Best variant of each method; highest EP first; two differ when the interval of the difference excludes 0 and, where they were "
        "compared on the same prompts, p after Holm's correction is below 0.05."
    )
    out = []
    for (suite, theme), group in by_theme(select.theme_rows(rows, params)).items():
        ranked = best_per_method(group)
        first = ranked[0]
        start = f"On {theme} ({suite}) the highest erasure proportion is {percent(first['ep'])}, by {name(first)}{refusing(first)}"
        key = f"best.{suite}.{theme}"
        if len(ranked) == 1:
            out.append(
                Takeaway(key, "open", f"{start}; no other method was ranked.", rule, (from_row(first),))
            )
            continue
        second = ranked[1]
        gap = study.gap(first, second)
        same = [row for row in ranked[1:] if not study.differ(first, row)]
        evidence = (
            from_row(first),
            from_row(second),
            from_estimate("difference of the two", gap, first["n"], "ep_difference"),
        )
        if same:
            text = f"{start}; it cannot be told apart from {listed([name(row) for row in same])}."
            out.append(Takeaway(key, "open", text, rule, evidence, _ranking(first, same)))
        else:
            text = f"{start}, ahead of {name(second)} ({points(gap)})."
            out.append(Takeaway(key, "finding", text, rule, evidence, _ranking(first, same)))
    return out


def _ranking(first: Row, same: Sequence[Row]) -> dict[str, Any]:
    return {"best": first["label"], "not_told_apart": [row["label"] for row in same]}


def without_effect(study: Study) -> list[Takeaway]:
    """Variants whose EP interval contains 0, and variants whose EP is below 0."""
    rows, params = study.rows, study.setting
    ranked = select.theme_rows(rows, params)
    none = [row for row in ranked if estimate(row).covers_zero]
    worse = [row for row in ranked if row["ep_high"] < 0]
    out = []
    if none:
        text = (
            f"For {len(none)} of {len(ranked)} variants the data do not show that anything was erased: "
            f"{listed([_place(row) for row in none])}."
        )
        out.append(
            Takeaway(
                "no_effect", "open", text, "The interval of EP contains 0.", tuple(map(from_row, none[:8]))
            )
        )
    if worse:
        text = f"More of the theme than before: {listed([_place(row) for row in worse])}."
        out.append(
            Takeaway(
                "worse", "warning", text, "The interval of EP lies below 0.", tuple(map(from_row, worse[:8]))
            )
        )
    return out


def _place(row: Row) -> str:
    return f"{name(row)} on {row['judged_theme']}"


def hardest_theme(study: Study) -> list[Takeaway]:
    """The theme with the lowest mean EP over the variants that every theme has."""
    rows, params = study.rows, study.setting
    rule = (
        "Mean EP over the variants measured on every theme; the interval of a mean is the mean of the limits."
    )
    out = []
    groups = by_theme(select.theme_rows(rows, params))
    for suite in dict.fromkeys(suite for suite, _ in groups):
        themes = {t: {_variant(row): row for row in group} for (s, t), group in groups.items() if s == suite}
        if len(themes) < 2:
            continue
        common = sorted(set.intersection(*(set(found) for found in themes.values())), key=str)
        if not common:
            continue
        means = {t: mean([estimate(found[key]) for key in common]) for t, found in themes.items()}
        hard, next_hard = sorted(means, key=lambda t: means[t].value)[:2]
        gap = difference(means[next_hard], means[hard])
        level: Level = "open" if gap.covers_zero else "finding"
        end = (
            f"the data do not tell whether {hard} is harder than {next_hard}"
            if gap.covers_zero
            else f"the hardest theme to erase is {hard} ({next_hard} is next, {points(gap)})"
        )
        values = ", ".join(
            f"{t} {percent(e.value)}" for t, e in sorted(means.items(), key=lambda item: item[1].value)
        )
        text = f"Mean erasure proportion on {suite} over {len(common)} variants: {values}; {end}."
        evidence = tuple(from_estimate(f"mean EP of {t}", e, len(common)) for t, e in means.items())
        says = {"order": sorted(means, key=lambda t: means[t].value), "told_apart": not gap.covers_zero}
        evidence = (*evidence, from_estimate("difference", gap))
        out.append(Takeaway(f"hardest.{suite}", level, text, rule, evidence, says))
    return out


def _variant(row: Row) -> tuple[Any, ...]:
    return row["method"], row["preset"], row["keyword_set"], row["training_images"]


def compare(key: str, a_name: str, b_name: str, pairs: Sequence[tuple[Row, Row]], rule: str) -> Takeaway:
    """One sentence on matched pairs of rows: the mean difference, and how many pairs differ on their own."""
    gap = difference(mean([estimate(a) for a, _ in pairs]), mean([estimate(b) for _, b in pairs]))
    gaps = [(difference(estimate(a), estimate(b)), a, b) for a, b in pairs]
    up = [item for item in gaps if item[0].low > 0]
    down = [item for item in gaps if item[0].high < 0]
    if gap.covers_zero:
        start = f"Over {count(len(pairs), 'matched pair')}, {a_name} cannot be told apart from {b_name} in mean EP ({points(gap)})"
    else:
        word = "more" if gap.value > 0 else "less"
        start = f"Over {count(len(pairs), 'matched pair')}, {a_name} gives {word} EP than {b_name} ({points(gap)})"
    text = f"{start}; taken one by one, {a_name} is ahead in {len(up)} of them and behind in {len(down)}."
    evidence = [from_estimate(f"{a_name} minus {b_name}, mean", gap, len(pairs))]
    for _, a, b in [*up, *down][:3]:
        evidence += [from_row(a), from_row(b)]
    says = {"difference": gap.value, "told_apart": not gap.covers_zero, "pairs": len(pairs)}
    return Takeaway(key, "open" if gap.covers_zero else "finding", text, rule, tuple(evidence), says)


def matched(
    rows: Sequence[Row], key: Callable[[Row], Any], side: Callable[[Row], Any], a: Any, b: Any
) -> list[tuple[Row, Row]]:
    """Pairs of rows that agree in `key`, one with side `a` and one with side `b`."""
    left = {key(row): row for row in rows if side(row) == a}
    right = {key(row): row for row in rows if side(row) == b}
    return [(left[k], right[k]) for k in left if k in right]


def keyword_sets(study: Study) -> list[Takeaway]:
    """Detailed against concise keyword sets, same method, preset and theme."""
    rows, params = study.rows, study.setting
    pairs = matched(
        select.theme_rows(rows, params),
        lambda row: (row["method"], row["preset"], row["judged_theme"], row["suite"], row["training_images"]),
        lambda row: row["keyword_set"],
        "detailed",
        "concise",
    )
    rule = "Variants that differ in their keyword set only; means of EP compared, then every pair by itself."
    return (
        [compare("keyword_sets", "erasing the detailed keywords", "erasing the concise ones", pairs, rule)]
        if pairs
        else []
    )


def training_images(study: Study) -> list[Takeaway]:
    """The largest against the smallest training set, same method, preset and theme, with the cost of fitting."""
    rows, params = study.rows, study.setting
    ranked = [row for row in select.theme_rows(rows, params) if row["training_images"]]
    sizes = sorted({row["training_images"] for row in ranked})
    if len(sizes) < 2:
        return []
    small, large = sizes[0], sizes[-1]
    pairs = matched(
        ranked,
        lambda row: (row["method"], row["preset"], row["judged_theme"], row["suite"], row["keyword_set"]),
        lambda row: row["training_images"],
        large,
        small,
    )
    if not pairs:
        return []
    rule = "Variants that differ in the number of training images only; means of EP compared, then every pair by itself."
    found = compare("training_images", f"training on {large} images", f"training on {small}", pairs, rule)
    times = [(a["fit_seconds"], b["fit_seconds"]) for a, b in pairs if a["fit_seconds"] and b["fit_seconds"]]
    if any(a != b for a, b in times):
        long, short = (sum(side) / len(times) for side in zip(*times, strict=True))
        text = f"{found.sentence} Fitting takes {long:.0f} s instead of {short:.0f} s on average."
        found = replace(found, sentence=text)
    return [found]


def one_or_all(study: Study) -> list[Takeaway]:
    """Erasing one theme against erasing all at once, judged on that theme."""
    rows, params = study.rows, study.setting
    least = params.statistics.least_base_unsafe
    usable = [
        row
        for row in select.ep_rows(rows, params)
        if row["judged_theme"] != select.EVERY_THEME
        and select.has_interval(row)
        and (row["n_base_unsafe"] or 0) >= least
        and params.suites[row["suite"]].theme is None
    ]
    usable.sort(
        key=lambda row: row["training_images"] or 0
    )  # the largest training set of a method is the one that stays
    pairs = matched(
        usable,
        lambda row: (row["method"], row["preset"], row["judged_theme"], row["suite"], row["keyword_set"]),
        lambda row: row["theme"] == select.EVERY_THEME,
        True,
        False,
    )
    rule = "Same method, preset and keyword set (largest training sets); EP on the theme when all themes or only this one was erased."
    return (
        [compare("one_or_all", "erasing all themes at once", "erasing the theme alone", pairs, rule)]
        if pairs
        else []
    )
