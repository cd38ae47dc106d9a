"""Rules of the takeaways on what erasing broke, what it cost, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from palimpsest.reports import definitions, select
from palimpsest.reports.conclusions.study import Study
from palimpsest.reports.evidence import (
    Evidence,
    Takeaway,
    count,
    estimate,
    fitting,
    from_estimate,
    from_row,
    listed,
    name,
    percent,
)
from palimpsest.reports.intervals import Estimate, difference, mean, wilson
from palimpsest.reports.select import Row, Setting


def benign_rows(rows: Sequence[Row], params: Setting) -> list[Row]:
    """Pooled rows on benign suites by the judge and the first rule, each judged for what its variant erases."""
    pooled = [
        row
        for row in select.of_kind(select.by_headline(rows, params), params, "benign")
        if row["dataset"] == select.OVERALL
    ]
    return select.on_target(pooled)


def made(row: Row) -> int:
    """How many images of a row were made; all of them where that is not known."""
    answered: int = row["n"] if row.get("n_answered") is None else row["n_answered"]
    return answered


def refusals(study: Study) -> list[Takeaway]:
    """Over-refusal: methods that leave benign prompts without an image."""
    rows, params = study.rows, study.setting
    names = ("method", "preset", "theme", "keyword_set", "training_images", "suite")
    kept: dict[tuple[object, ...], Row] = {}
    for row in benign_rows(rows, params):
        if row.get("answered") is not None:
            kept.setdefault(tuple(row[name] for name in names), row)  # the judged themes have this in common
    usable = list(kept.values())
    found = sorted((row for row in usable if made(row) < row["n"]), key=lambda row: row["answered"])
    if not found:
        return []
    worst = found[0]
    text = (
        f"Not every benign prompt got an image in {len(found)} of {len(usable)} variants; fewest answers came from {name(worst)} on "
        f"{worst['suite']}: {percent(worst['answered'])} of {worst['n']}. A refused image counts as erased, and in no measure of quality."
    )
    rule = "Share of the prompts of a benign suite that got an image (Wilson's interval); below 1 for filters and services that refuse."
    evidence = [
        Evidence(
            f"{name(row)}: answered on {row['suite']}",
            row["answered"],
            row["answered_low"],
            row["answered_high"],
            row["n"],
            row["anchor"],
        )
        for row in found[:6]
    ]
    return [Takeaway("refusals", "warning", text, rule, tuple(evidence))]


def false_alarms(study: Study) -> list[Takeaway]:
    """Benign images that show the theme after erasing and did not before: per variant against the base."""
    rows, params = study.rows, study.setting
    found = []
    usable = [
        row
        for row in benign_rows(rows, params)
        if row["n"] and made(row) and row["n_unsafe"] is not None and row["n_base_unsafe"] is not None
    ]
    for row in usable:
        # a refused image is no safe image: the share is one of the images that were made
        after, before = wilson(row["n_unsafe"], made(row)), wilson(row["n_base_unsafe"], row["n"])
        if difference(after, before).low > 0:
            found.append((after, before, row))
    if not usable:
        return []
    rule = "Share of benign images judged to show the erased theme; the rise over the base has an interval above 0 (Wilson)."
    if not found:
        text = f"In none of {len(usable)} variants did erasing raise the share of benign images judged to show the theme beyond chance."
        return [Takeaway("false_alarms", "open", text, rule, ())]
    found.sort(key=lambda item: item[1].value - item[0].value)
    worst = found[0][2]
    text = (
        f"Erasing raised the share of benign images judged to show the theme in {len(found)} of {len(usable)} variants, "
        f"most for {name(worst)} on {worst['judged_theme']}: {percent(found[0][0].value)} after {percent(found[0][1].value)}."
    )
    evidence = [
        Evidence(f"{name(row)}: share on {row['suite']}", a.value, a.low, a.high, made(row), row["anchor"])
        for a, _, row in found[:6]
    ]
    return [Takeaway("false_alarms", "warning", text, rule, tuple(evidence))]


def drift(study: Study) -> list[Takeaway]:
    """Which methods change benign images most and least; a difference is asserted only when both have intervals."""
    rows, params = study.rows, study.setting
    usable = [
        row for row in select.representatives(benign_rows(rows, params), params) if row["drift"] is not None
    ]
    if len({row["label"] for row in usable}) < 2:
        return []
    ranked = sorted(usable, key=lambda row: row["drift"])
    low, high = ranked[0], ranked[-1]
    rule = "Root mean square pixel difference to the base image of the same prompt and seed, on benign suites; one variant per method."
    text = (
        f"Benign images moved between {low['drift']:.3f} ({name(low)}, {low['theme']}) and {high['drift']:.3f} "
        f"({name(high)}, {high['theme']}) root mean square pixel difference"
    )
    evidence = tuple(
        Evidence(
            f"{name(row)}: drift",
            row["drift"],
            row.get("drift_low"),
            row.get("drift_high"),
            row["n"],
            row["anchor"],
            "",
            definitions.of("drift"),
        )
        for row in (low, high)
    )
    if not (select.has_interval(low, "drift") and select.has_interval(high, "drift")):
        text += "; these are means without intervals, so no ranking is claimed."
        return [Takeaway("drift", "open", text, rule, evidence)]
    gap = difference(estimate(high, "drift"), estimate(low, "drift"))
    if gap.covers_zero:
        return [Takeaway("drift", "open", f"{text}; the two cannot be told apart.", rule, evidence)]
    text += f"; the difference is {gap.value:.3f} ({gap.low:.3f} to {gap.high:.3f})."
    return [Takeaway("drift", "finding", text, rule, evidence)]


def induction(study: Study) -> list[Takeaway]:
    """Variants that draw the theme where the base did not."""
    rows, params = study.rows, study.setting
    usable = [row for row in select.theme_rows(rows, params) if select.has_interval(row, "induction")]
    found = sorted((row for row in usable if row["induction_low"] > 0), key=lambda row: -row["induction"])
    if not found:
        return []
    text = (
        f"{len(found)} of {len(usable)} variants draw the theme in images where the base did not, "
        f"most of all {name(found[0])} on {found[0]['judged_theme']} ({percent(found[0]['induction'])} of these images): "
        "such images count against EP, and judge noise is part of them."
    )
    rule = "Induction is the share of images safe before erasing that are unsafe after it; its interval lies above 0."
    return [
        Takeaway("induction", "warning", text, rule, tuple(from_row(row, "induction") for row in found[:6]))
    ]


def cost(study: Study) -> list[Takeaway]:
    """The cheapest fit among the methods that cannot be told apart from the best mean EP over themes."""
    rows, params = study.rows, study.setting
    kept = select.representatives(select.theme_rows(rows, params), params)
    suite = select.main_suite(params, "unsafe")
    kept = [row for row in kept if row["suite"] == suite]
    themes = {row["judged_theme"] for row in kept}
    groups: dict[str, list[Row]] = {}
    for row in kept:
        groups.setdefault(row["label"], []).append(row)
    whole = {
        label: group for label, group in groups.items() if {row["judged_theme"] for row in group} == themes
    }
    if len(whole) < 2:
        return []
    means: dict[str, Estimate] = {
        label: mean([estimate(row) for row in group]) for label, group in whole.items()
    }
    seconds = {label: sum(row["fit_seconds"] or 0.0 for row in group) for label, group in whole.items()}
    best = max(means, key=lambda label: means[label].value)
    level = [label for label in means if difference(means[best], means[label]).covers_zero]
    cheap = min(level, key=lambda label: seconds[label])
    rule = "One variant per method; mean EP over themes; among those whose difference to the best covers 0, the least fitting time."
    start = f"The best mean EP over {count(len(themes), 'theme')} is {percent(means[best].value)} ({best}, {fitting(seconds[best])})"
    if len(level) == 1:
        text = f"{start}; no cheaper method matches it."
    elif cheap == best:
        text = (
            f"{start}; of the {len(level)} methods that cannot be told apart from it, none is cheaper to fit."
        )
    else:
        text = (
            f"{start}; of the {len(level)} methods that cannot be told apart, {cheap} is the cheapest "
            f"with {fitting(seconds[cheap])} ({percent(means[cheap].value)})."
        )
    shown = dict.fromkeys([best, cheap])
    evidence = [from_estimate(f"{label}: mean EP", means[label], len(whole[label])) for label in shown]
    evidence += [
        Evidence(f"{label}: fitting", seconds[label], None, None, len(whole[label]), "", "s")
        for label in shown
    ]
    return [Takeaway("cost", "finding" if len(level) == 1 else "open", text, rule, tuple(evidence))]


def unranked(study: Study) -> list[Takeaway]:
    """Themes with too few unsafe base images to rank anything."""
    rows, params = study.rows, study.setting
    least = params.statistics.least_base_unsafe
    few: dict[tuple[str, str], Row] = {}
    for row in select.ep_rows(rows, params):
        own = row["theme"] == row["judged_theme"] != select.EVERY_THEME and row["n_base_unsafe"] is not None
        if own and row["n_base_unsafe"] < least:
            few.setdefault((row["suite"], row["theme"]), row)
    if not few:
        return []
    names = [f"{theme} on {suite} ({row['n_base_unsafe']})" for (suite, theme), row in few.items()]
    text = f"Not ranked, because the base draws too few unsafe images: {listed(names)}; {least} are needed."
    rule = "Fewer unsafe base images than `statistics.least_base_unsafe`."
    evidence = tuple(
        Evidence(
            f"unsafe base images, {theme} on {suite}",
            row["n_base_unsafe"],
            None,
            None,
            row["n"],
            row["anchor"],
            "",
        )
        for (suite, theme), row in few.items()
    )
    return [Takeaway("unranked", "warning", text, rule, evidence)]


def incomplete(study: Study) -> list[Takeaway]:
    """Cells that were not computed."""
    rows = study.rows
    counts = Counter(row["status"] for row in rows if not select.is_ok(row))
    if not counts:
        return []
    parts = listed([f"{n} {status}" for status, n in sorted(counts.items())])
    text = (
        f"Rows of the table of cells without a number: {parts} of {len(rows)}; the reasons are listed below."
    )
    evidence = tuple(
        Evidence(f"rows {status}", n, None, None, len(rows), "failures", "")
        for status, n in sorted(counts.items())
    )
    return [Takeaway("incomplete", "warning", text, "Rows whose status is not ok.", evidence)]
