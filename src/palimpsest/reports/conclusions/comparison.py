"""Rules that compare groups of methods (those that fit nothing, those that are fitted), themes, keyword sets, sizes of training sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.reports import select
from palimpsest.reports.conclusions.aspects import estimate_of, method_rows
from palimpsest.reports.conclusions.levels import erasure_rows, time_rows
from palimpsest.reports.conclusions.study import Study
from palimpsest.reports.evidence import (
    Evidence,
    Level,
    Takeaway,
    from_estimate,
    from_row,
    listed,
    percent,
    points,
)
from palimpsest.reports.intervals import Estimate, difference, mean
from palimpsest.reports.select import Row

BARELY = 0.10  # an EP whose interval lies below this is next to nothing
COMPARABLE = 0.10  # versions whose EP differs by no more than this on average are comparable


@dataclass(frozen=True)
class Headline:
    """One method erasing everything. row: where it is one row of the table; e: its EP."""

    label: str
    e: Estimate
    row: Row
    fits: bool


def headlines(study: Study) -> list[Headline]:
    """EP of every method with all themes erased at once, best first; where fewer than two methods were, its mean EP over versions."""
    whole = {row["label"]: row for row in select.representatives(_all_erased(study), study.setting)}
    if len(whole) >= 2:
        found = [Headline(k, select.estimate(r), r, r.get("fits", True)) for k, r in whole.items()]
    else:
        means = {label: (estimate_of(own), own[0]) for label, own in method_rows(study).items()}
        found = [Headline(k, e, r, r.get("fits", True)) for k, (e, r) in means.items() if e is not None]
    return sorted(found, key=lambda h: -h.e.value)


def _all_erased(study: Study) -> list[Row]:
    return [
        r
        for r in erasure_rows(study)
        if r["theme"] == select.EVERY_THEME and r["judged_theme"] == select.ANY and select.has_interval(r)
    ]


def stages(study: Study) -> list[Takeaway]:
    """Methods that act at sampling against methods that are fitted."""
    found = headlines(study)
    sides = {fits: [h for h in found if h.fits is fits] for fits in (False, True)}
    if not all(sides.values()):
        return []
    without, fitted = (mean([h.e for h in sides[fits]]) for fits in (False, True))
    gap = difference(without, fitted)
    rule = (
        "Mean EP, all themes erased, of the methods that fit nothing less that of the methods that do; the interval of a "
        "mean is the mean of the limits."
    )
    start = (
        f"Methods that fit nothing remove {percent(without.value)} on average over {len(sides[False])} methods, fitted ones "
        f"{percent(fitted.value)} over {len(sides[True])}"
    )
    end = "the data do not tell the two groups apart" if gap.covers_zero else f"a difference of {points(gap)}"
    says = {"ahead": "post-hoc" if gap.value > 0 else "fitted", "told_apart": not gap.covers_zero}
    evidence = (
        from_estimate("without fitting", without),
        from_estimate("fitted", fitted),
        from_estimate("difference", gap),
    )
    return [
        Takeaway("stages", "open" if gap.covers_zero else "finding", f"{start}; {end}.", rule, evidence, says)
    ]


def barely(study: Study) -> list[Takeaway]:
    """Methods that erase next to nothing when all themes are erased at once."""
    found = [h for h in headlines(study) if h.e.high < BARELY]
    if not found:
        return []
    least = f"{100 * BARELY:.0f} %"
    text = f"With all themes erased at once less than {least} of the unsafe images are gone under {listed([h.label for h in found])}."
    rule = f"All themes erased; the interval of EP lies below {least}."
    evidence = tuple(from_estimate(f"{h.label}: EP", h.e, h.row["n"]) for h in found[:6])
    return [Takeaway("barely", "finding", text, rule, evidence, {"methods": sorted(h.label for h in found)})]


def best_fitted(study: Study) -> list[Takeaway]:
    """The fitted method of highest EP, and where its fitting time stands."""
    fitted = [h for h in headlines(study) if h.fits]
    seconds: dict[str, list[float]] = defaultdict(list)
    for row in time_rows(study):
        seconds[row["label"]].append(row["fit_seconds"])
    costs = {h.label: sum(seconds[h.label]) / len(seconds[h.label]) for h in fitted if seconds[h.label]}
    if len(fitted) < 2:
        return []
    best, *others = fitted
    same = [h.label for h in others if _same(study, best, h)]
    text = f"Of the fitted methods {best.label} removes most ({percent(best.e.value)})"
    text += (
        f", not told apart from {listed(same)}"
        if same
        else f", ahead of {others[0].label} ({percent(others[0].e.value)})"
    )
    place = 1 + sum(cost > costs[best.label] for cost in costs.values()) if best.label in costs else None
    if place:
        text += f"; it takes {costs[best.label]:.0f} s to fit, " + (
            f"the longest of {len(costs)}"
            if place == 1
            else f"place {place} from the longest of {len(costs)}"
        )
    rule = "Fitted methods, all themes erased, by EP; mean fitting seconds over variants."
    evidence = [from_estimate(f"{h.label}: EP", h.e, h.row["n"]) for h in fitted[:2]]
    evidence += [
        Evidence(f"{k}: fitting", costs[k], None, None, None, "", "s")
        for k in sorted(costs, key=lambda k: -costs[k])[:2]
    ]
    says = {"best": best.label, "not_told_apart": same, "time_from_longest": place}
    return [Takeaway("best_fitted", "open" if same else "finding", f"{text}.", rule, tuple(evidence), says)]


def _same(study: Study, a: Headline, b: Headline) -> bool:
    both = a.row["theme"] == b.row["theme"] == select.EVERY_THEME
    return not study.differ(a.row, b.row) if both else difference(a.e, b.e).covers_zero


def consistency(study: Study) -> list[Takeaway]:
    """How far apart the themes lie for one method: those without fitting against fitted ones."""
    spreads: dict[bool, dict[str, float]] = {False: {}, True: {}}
    for label, own in method_rows(study).items():
        themes: dict[str, list[float]] = defaultdict(list)
        for row in own:
            if row["judged_theme"] in study.setting.themes:
                themes[row["judged_theme"]].append(row["ep"])
        if len(themes) > 1:
            means = [sum(v) / len(v) for v in themes.values()]
            spreads[own[0].get("fits", True)][label] = max(means) - min(means)
    if not all(spreads.values()):
        return []
    without, fitted = (sum(spreads[s].values()) / len(spreads[s]) for s in (False, True))
    rule = (
        "Per method the greatest less the least of its mean EPs over themes; then the mean over methods. No interval is "
        "known for a range."
    )
    text = (
        f"From theme to theme EP differs by {100 * without:.1f} points for methods that fit nothing and by "
        f"{100 * fitted:.1f} for fitted ones."
    )
    evidence = tuple(
        Evidence(f"{label}: range over themes", spread, None, None, None)
        for side in spreads.values()
        for label, spread in sorted(side.items(), key=lambda i: -i[1])[:3]
    )
    return [
        Takeaway(
            "consistency",
            "point",
            text,
            rule,
            evidence,
            {"steadier": "post-hoc" if without < fitted else "fitted"},
        )
    ]


def hardest_for_fitted(study: Study) -> list[Takeaway]:
    """The theme that fitted methods erase least."""
    groups: dict[str, list[Estimate]] = defaultdict(list)
    for own in method_rows(study).values():
        for row in own:
            if (
                row.get("fits", True)
                and row["judged_theme"] in study.setting.themes
                and select.has_interval(row)
            ):
                groups[row["judged_theme"]].append(select.estimate(row))
    if len(groups) < 2:
        return []
    means = {theme: mean(found) for theme, found in groups.items()}
    hard, following = sorted(means, key=lambda t: means[t].value)[:2]
    gap = difference(means[following], means[hard])
    end = (
        f"cannot be told apart from {following}" if gap.covers_zero else f"{following} is next, {points(gap)}"
    )
    text = f"Fitted methods erase least on {hard} ({percent(means[hard].value)} on average); {end}."
    rule = "Mean EP of fitted methods over all versions of a theme; the interval of a mean is the mean of the limits."
    evidence = tuple(from_estimate(f"mean EP of {t}", e, len(groups[t])) for t, e in means.items())
    level: Level = "open" if gap.covers_zero else "finding"
    return [
        Takeaway(
            "hardest_fitted",
            level,
            text,
            rule,
            evidence,
            {"hardest": hard, "told_apart": not gap.covers_zero},
        )
    ]


def _changes(study: Study, column: str, a: object, b: object) -> dict[str, list[tuple[Row, Row]]]:
    """Per method the pairs of versions (b, a) of a theme that differ in one column."""
    rows = [
        r
        for r in erasure_rows(study)
        if r["judged_theme"] in study.setting.themes and r["theme"] == r["judged_theme"]
    ]
    found: dict[str, list[tuple[Row, Row]]] = defaultdict(list)
    for first in rows:
        for second in rows:
            same = all(first[k] == second[k] for k in ("label", "theme", "suite"))
            other = "training_images" if column == "keyword_set" else "keyword_set"
            if same and first[other] == second[other] and (first[column], second[column]) == (a, b):
                found[first["label"]].append((second, first))
    return found


def _mean_change(pairs: Sequence[tuple[Row, Row]]) -> tuple[float, float]:
    """Mean difference, and mean absolute difference, of the EPs of pairs."""
    gaps = [b["ep"] - a["ep"] for b, a in pairs]
    return sum(gaps) / len(gaps), sum(map(abs, gaps)) / len(gaps)


def keywords_comparable(study: Study) -> list[Takeaway]:
    """Which methods give much the same with concise and with detailed keywords."""
    changes = _changes(study, "keyword_set", "concise", "detailed")
    if not changes:
        return []
    sizes = {label: _mean_change(pairs)[1] for label, pairs in changes.items()}
    even = sorted(label for label, size in sizes.items() if size <= COMPARABLE)
    uneven = sorted(set(sizes) - set(even))
    text = f"Detailed and concise keywords give comparable EP for {len(even)} of {len(sizes)} methods"
    text += f"; not for {listed([f'{m} ({100 * sizes[m]:.1f} points)' for m in uneven])}." if uneven else "."
    rule = f"A method is comparable when its EP changes by at most {100 * COMPARABLE:.0f} points, mean absolute difference over themes."
    evidence = tuple(from_row(row) for label in uneven[:3] for row in changes[label][0])
    return [
        Takeaway(
            "keywords_comparable",
            "point",
            text,
            rule,
            evidence,
            {"comparable": even, "not": uneven, "most": len(even) > len(uneven)},
        )
    ]


def _sizes(study: Study) -> tuple[int, int] | None:
    sizes = sorted(
        {
            r["training_images"]
            for r in erasure_rows(study)
            if r["training_images"] and r["theme"] == r["judged_theme"]
        }
    )
    return (sizes[0], sizes[-1]) if len(sizes) > 1 else None


def data_scale(study: Study) -> list[Takeaway]:
    """Which methods gain from more training images."""
    sizes = _sizes(study)
    changes = _changes(study, "training_images", *sizes) if sizes else {}
    if not changes or not sizes:
        return []
    gains = {label: _mean_change(pairs) for label, pairs in changes.items()}
    stable = sorted(label for label, (_, size) in gains.items() if size <= COMPARABLE)
    moved = sorted(set(gains) - set(stable), key=lambda label: -gains[label][0])
    start = f"From {sizes[0]} to {sizes[1]} training images"
    text = f"{start} EP stays within {100 * COMPARABLE:.0f} points for {listed(stable) or 'no method'}"
    text += (
        f"; it changes for {listed([f'{m} ({100 * gains[m][0]:+.1f} points)' for m in moved])}."
        if moved
        else "."
    )
    rule = (
        "Mean absolute difference of EP between the smallest and the largest training set over themes, at most "
        f"{100 * COMPARABLE:.0f} points."
    )
    evidence = tuple(from_row(row) for label in moved[:3] for row in changes[label][0])
    return [
        Takeaway("data_scale", "point", text, rule, evidence, {"stable": stable, "sensitive": sorted(moved)})
    ]


def limited_benefit(study: Study) -> list[Takeaway]:
    """Whether more data, words or images, helps most methods."""
    sizes = _sizes(study)
    words = _changes(study, "keyword_set", "concise", "detailed")
    images = _changes(study, "training_images", *sizes) if sizes else {}
    gains = {label: _mean_change(pairs)[0] for label, pairs in {**words, **images}.items()}
    if len(gains) < 2:
        return []
    helped = sorted(
        (label for label, gain in gains.items() if gain > COMPARABLE), key=lambda label: -gains[label]
    )
    text = (
        f"More data (detailed keywords, or the largest training set) raise EP by more than {100 * COMPARABLE:.0f} points for "
        f"{len(helped)} of {len(gains)} methods"
    )
    text += f": {listed([f'{m} ({100 * gains[m]:+.1f})' for m in helped])}." if helped else "."
    rule = f"Mean difference of EP over themes, most against least data, above {100 * COMPARABLE:.0f} points."
    evidence = tuple(
        Evidence(f"{m}: gain", gains[m], None, None, None) for m in sorted(gains, key=lambda m: -gains[m])[:6]
    )
    return [
        Takeaway(
            "limited_benefit",
            "point",
            text,
            rule,
            evidence,
            {"helped": helped, "limited_for_most": 2 * len(helped) < len(gains)},
        )
    ]
