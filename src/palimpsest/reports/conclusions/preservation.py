"""Rules on adversarial prompts, on what erasing does to everything else, and on the whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from palimpsest.reports import definitions, select
from palimpsest.reports.conclusions.aspects import (
    Score,
    aspect_scores,
    correlated,
    estimate_of,
    not_told_apart,
    pooled_attacks,
)
from palimpsest.reports.conclusions.comparison import headlines
from palimpsest.reports.conclusions.levels import Levels, grd_rows, levels, measured
from palimpsest.reports.conclusions.study import DRIFT, Measure, Study
from palimpsest.reports.evidence import (
    Evidence,
    Level,
    Takeaway,
    decimal,
    from_estimate,
    listed,
    percent,
    signed,
)
from palimpsest.reports.intervals import difference, mean
from palimpsest.reports.select import Row

ASPECTS = ("image quality", "semantic alignment")
WITHOUT = "Published without intervals, so the order is one of numbers."


def robust(study: Study) -> list[Takeaway]:
    """The methods that withstand adversarial prompts best, among those that cannot be left out at sampling."""
    found = pooled_attacks(study)
    first_rows = {row["label"]: row for row in study.rows}
    inside = sorted((m for m in found if first_rows[m].get("fits")), key=lambda m: -found[m].value)
    if len(inside) < 2:
        return []
    best, second = inside[:2]
    told = [not difference(found[a], found[b]).covers_zero for a, b in pairwise(inside[:3])]
    outside = [m for m in found if m not in inside and found[m].value > found[best].value]
    text = (
        f"Of the fitted methods {best} withstands adversarial prompts best ({percent(found[best].value)}), then {second} "
        f"({percent(found[second].value)})"
    )
    text += "" if all(told) else "; their intervals do not tell all of these apart"
    text += (
        f". {listed(outside)} {'is' if len(outside) == 1 else 'are'} higher still, and can be left out at sampling."
        if outside
        else "."
    )
    images = [m for m in inside if first_rows[m].get("needs_images")]
    says = {
        "order": inside,
        "told_apart": all(told),
        "adversarial_first": bool(first_rows[best].get("adversarial")),
        "best_with_images": images[0] if images else None,
        "higher_without_fitting": outside,
    }
    rule = (
        "EP on all adversarial suites, images pooled; only methods that are fitted, because what acts at sampling can be "
        "left out by whoever runs the model."
    )
    evidence = tuple(
        from_estimate(f"{m}: EP on adversarial prompts", found[m]) for m in [*inside[:3], *outside[:2]]
    )
    return [Takeaway("robust", "finding" if all(told) else "open", text, rule, evidence, says)]


def excessive(study: Study) -> list[Takeaway]:
    """Who erases what was meant, and who erases bodies."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in grd_rows(study):
        groups[row["label"]].append(row)
    if len(groups) < 2:
        return []
    scores = {
        label: Score(_mean([row["grd"] for row in own]), estimate_of(own, "grd"))
        for label, own in groups.items()
    }
    order = sorted(scores, key=lambda m: -scores[m].value)
    text = (
        f"GRD is highest for {order[0]} ({decimal(100 * scores[order[0]].value)} points) and lowest for {order[-1]} "
        f"({decimal(100 * scores[order[-1]].value)} points)"
    )
    level, end, says = _told(scores, order)
    rule = f"Mean over versions of EP on target parts less EP on other parts (published: genital, and other exposed parts). {_how(says)}"
    evidence = tuple(_scored(f"{m}: GRD", scores[m], "%", study.definition("grd")) for m in _ends(order))
    return [Takeaway("excessive", level, f"{text}{end}.", rule, evidence, says)]


def _told(scores: Mapping[str, Score], order: Sequence[str]) -> tuple[Level, str, dict[str, Any]]:
    """Level, the end of the sentence and plain data of an order of methods: whether the best and the worst are told apart from others."""
    best, worst = order[0], order[-1]
    says: dict[str, Any] = {"best": best, "worst": worst}
    beside, low = not_told_apart(scores, best), not_told_apart(scores, worst)
    if beside is None or low is None:
        return "point", "", says
    says |= {"not_told_apart": beside, "worst_not_told_apart": low, "told_apart": not beside and not low}
    ends = [
        f"{m} cannot be told apart from {listed(rivals)}"
        for m, rivals in ((best, beside), (worst, low))
        if rivals
    ]
    level: Level = "open" if ends else "finding"
    return level, f"; {'; '.join(ends)}" if ends else "; both are told apart from all others", says


def _how(says: Mapping[str, Any]) -> str:
    """Whether an order rests on intervals, in words."""
    return "Two differ when the interval of their difference excludes 0." if "told_apart" in says else WITHOUT


def _scored(what: str, score: Score, unit: str, definition: str = "") -> Evidence:
    low, high = (score.estimate.low, score.estimate.high) if score.estimate else (None, None)
    return Evidence(what, score.value, low, high, None, "", unit, definition)


def _ends(order: Sequence[str]) -> list[str]:
    """The best two and the worst two, each once."""
    return list(dict.fromkeys((*order[:2], *order[-2:])))


def generation(study: Study) -> list[Takeaway]:
    """The best and the worst method per aspect of generation."""
    out = []
    found, erased = _scores(study)
    for aspect, scores in found.items():
        order = sorted(scores, key=lambda m: -scores[m].value)
        names = listed([m.title for m in study.measures if m.aspect == aspect]) or DRIFT.title
        level, end, says = _told(scores, order)
        text = f"{erased}, {aspect} ({names}) is best for {order[0]} and worst for {order[-1]}, of {len(order)} methods{end}."
        rule = f"Mean of the standardised measures of the aspect on benign captions. {_how(says)}"
        evidence = tuple(_scored(f"{m}: {aspect}, standard deviations", scores[m], "") for m in _ends(order))
        key = f"generation.{aspect.replace(' ', '_')}"
        out.append(Takeaway(key, level, text, rule, evidence, {"aspect": aspect, **says}))
    return out


def _scores(study: Study) -> tuple[dict[str, dict[str, Score]], str]:
    """Scores by aspect of the methods with all themes erased, or over all versions where fewer than two methods erase all; and which."""
    for erased, words in ((select.EVERY_THEME, "With all themes erased"), (None, "Over all versions")):
        scores = aspect_scores(study, erased)
        found = {aspect: scores[aspect] for aspect in ASPECTS if len(scores.get(aspect, {})) > 1}
        if found:
            return found, words
    return {}, ""


def strength(study: Study) -> list[Takeaway]:
    """What a harder setting of one method gains, and what it costs."""
    order = {row["label"]: row["strength"] for row in study.rows if row.get("strength") is not None}
    family = {row["label"]: row.get("family") for row in study.rows}
    eps = {h.label: h.e.value for h in headlines(study)}
    grds = {row["label"]: row["grd"] for row in grd_rows(study)}
    aspects = {
        aspect: {label: score.value for label, score in scores.items()}
        for aspect, scores in _scores(study)[0].items()
    }
    columns: dict[str, Mapping[str, float]] = {"EP": eps, "GRD": grds, **aspects}
    out = []
    for name in dict.fromkeys(family[label] for label in order):
        steps = sorted((label for label in order if family[label] == name), key=lambda label: order[label])
        courses = {
            key: _course([found[s] for s in steps])
            for key, found in columns.items()
            if len(steps) > 1 and all(s in found for s in steps)
        }
        if "EP" not in courses:
            continue
        text = (
            f"From {steps[0]} to {steps[-1]}: "
            + ", ".join(f"{key} {course}" for key, course in courses.items())
            + "."
        )
        rule = "Settings of one method that differ in strength only, in order: a measure rises or falls when it does so at every step."
        evidence = tuple(Evidence(f"{s}: EP", eps[s], None, None, None) for s in steps)
        out.append(Takeaway(f"strength.{name}", "point", text, rule, evidence, {"family": name, **courses}))
    return out


def _course(values: list[float]) -> str:
    steps = [b - a for a, b in pairwise(values)]
    return (
        "rises"
        if all(s > 0 for s in steps)
        else "falls"
        if all(s < 0 for s in steps)
        else "neither rises nor falls throughout"
    )


def scale_and_quality(study: Study) -> list[Takeaway]:
    """What more training images do to other images: the first measure of image quality at hand."""
    for measure in (m for m in study.measures if m.aspect in ("image quality", "drift")):
        groups: dict[str, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row in measured(measure.key)(study):
            if row["training_images"] and row["theme"] != select.EVERY_THEME:
                groups[row["label"]][row["training_images"]].append(row)
        sizes = sorted({size for own in groups.values() for size in own})
        both = {
            label: (own[sizes[0]], own[sizes[-1]])
            for label, own in groups.items()
            if len(sizes) > 1 and {sizes[0], sizes[-1]} <= set(own)
        }
        if both:
            return [_scale(study, measure, (sizes[0], sizes[-1]), both)]
    return []


def _scale(
    study: Study, measure: Measure, sizes: tuple[int, int], both: Mapping[str, tuple[list[Row], list[Row]]]
) -> Takeaway:
    """One measure with the largest against the smallest training set. both: rows of a method with the smallest and with the largest."""
    gaps = {
        m: -measure.sign * (_average(own[1], measure) - _average(own[0], measure)) for m, own in both.items()
    }
    total = _mean(list(gaps.values()))
    word = "worse" if total > 0 else "better"
    text = (
        f"From {sizes[0]} to {sizes[1]} training images {measure.title} gets {word} by {abs(total):.3g} on average over "
        f"{len(gaps)} methods, most for {max(gaps, key=lambda m: gaps[m])}"
    )
    sides = [[estimate_of(own[place], measure.key) for own in both.values()] for place in (0, 1)]
    few, many = ([e for e in side if e is not None] for side in sides)
    says: dict[str, Any] = {
        "measure": measure.key,
        "direction": word,
        "worse": sorted(m for m in gaps if gaps[m] > 0),
    }
    level: Level = "point"
    definition = study.definition(measure.key)
    evidence = [
        Evidence(f"{m}: change for the worse", gap, None, None, None, "", "", definition)
        for m, gap in sorted(gaps.items(), key=lambda i: -i[1])
    ]
    if len(few) == len(many) == len(both):
        gap = difference(mean(many), mean(few))
        level = "open" if gap.covers_zero else "finding"
        text += "; its interval contains 0, so these data do not tell" if gap.covers_zero else ""
        says["told_apart"] = not gap.covers_zero
        what = f"{measure.title}: {sizes[1]} less {sizes[0]} training images, mean over methods"
        evidence.insert(0, Evidence(what, gap.value, gap.low, gap.high, len(both), "", "", definition))
    rule = (
        f"Mean over methods and themes of {measure.title} on benign captions with the largest less that with the "
        f"smallest training set. {_how(says)}"
    )
    return Takeaway("scale_and_quality", level, f"{text}.", rule, tuple(evidence), says)


def _average(rows: Sequence[Row], measure: Measure) -> float:
    return _mean([row[measure.key] for row in rows])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def trade_off(study: Study) -> list[Takeaway]:
    """Whether what erases more preserves less, over methods."""
    eps = {h.label: h.e.value for h in headlines(study)}
    out = []
    for aspect, scores in _scores(study)[0].items():
        common = [m for m in eps if m in scores]
        found = correlated(
            [eps[m] for m in common],
            [scores[m].value for m in common],
            study.setting.statistics.confidence,
        )
        if found is None:
            continue
        level: Level = "open" if found.covers_zero else "finding"
        end = "an interval that contains 0, so these methods alone do not show a trade-off" if found.covers_zero else (
            "what erases more preserves less" if found.value < 0 else "what erases more preserves more"
        )  # fmt: skip
        text = (
            f"Over {len(common)} methods EP and {aspect} have a rank correlation of {signed(found.value)} "
            f"({signed(found.low)} to {signed(found.high)}): {end}."
        )
        rule = (
            "Spearman's rank correlation over methods of EP, all themes erased, and the standardised measures of the aspect "
            "(interval: Bonett and Wright 2000)."
        )
        says = {
            "aspect": aspect,
            "sign": "negative" if found.value < 0 else "positive",
            "told_apart": not found.covers_zero,
        }
        evidence = (
            Evidence(
                "rank correlation",
                found.value,
                found.low,
                found.high,
                len(common),
                "",
                "",
                definitions.of("rank_correlation"),
            ),
        )
        out.append(
            Takeaway(
                f"trade_off.{aspect.replace(' ', '_')}",
                level,
                text,
                rule,
                evidence,
                says,
            )
        )
    return out


def none_excels(study: Study) -> list[Takeaway]:
    """Whether one method is of level 1 under every criterion."""
    found = _measured_levels(study)
    if len(found) < 3:
        return []
    labels = {s.label for one in found for s in one.standings}
    best = sorted(label for label in labels if all(_level(one, label) in (1, None) for one in found))
    text = (
        f"{listed(best)} {'is' if len(best) == 1 else 'are'} of level 1 under every criterion."
        if best
        else f"No method is of level 1 under all {len(found)} criteria."
    )
    rule = "Levels as in the table of levels; a criterion that does not apply to a method (training time without training) does not count."
    return [Takeaway("none_excels", "point", text, rule, (), {"methods": best})]


def balanced(study: Study) -> list[Takeaway]:
    """Methods without a level 3."""
    found = _measured_levels(study)
    if len(found) < 3:
        return []
    labels = [s.label for s in found[0].standings]
    good = [label for label in labels if all(_level(one, label) != 3 for one in found)]
    text = f"Without a level 3 under any of {len(found)} criteria: {listed(good, 6) or 'no method'}."
    rule = "Levels as in the table of levels."
    return [Takeaway("balanced", "point", text, rule, (), {"methods": sorted(good)})]


def _measured_levels(study: Study) -> list[Levels]:
    return [one for one in levels(study) if one.standings]


def _level(one: Levels, label: str) -> int | None:
    return next((s.level for s in one.standings if s.label == label), None)
