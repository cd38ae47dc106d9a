"""Rules on adversarial prompts, on what erasing does to everything else, and on the whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise

from palimpsest.reports import definitions, select
from palimpsest.reports.conclusions.aspects import aspect_scores, correlated, pooled_attacks
from palimpsest.reports.conclusions.comparison import headlines
from palimpsest.reports.conclusions.levels import Levels, grd_rows, levels, measured
from palimpsest.reports.conclusions.study import MEASURES, Study
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
from palimpsest.reports.intervals import difference

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
    groups: dict[str, list[float]] = defaultdict(list)
    for row in grd_rows(study):
        groups[row["label"]].append(row["grd"])
    if len(groups) < 2:
        return []
    means = {label: sum(v) / len(v) for label, v in groups.items()}
    order = sorted(means, key=lambda m: -means[m])
    text = (
        f"The genital ratio difference is highest for {order[0]} ({decimal(100 * means[order[0]])} points) and lowest for {order[-1]} "
        f"({decimal(100 * means[order[-1]])} points)."
    )
    rule = f"Mean over versions of EP on genital parts less EP on other exposed parts. {WITHOUT}"
    evidence = tuple(Evidence(f"{m}: GRD", means[m], None, None, None) for m in (*order[:2], *order[-2:]))
    return [Takeaway("excessive", "point", text, rule, evidence, {"best": order[0], "worst": order[-1]})]


def generation(study: Study) -> list[Takeaway]:
    """The best and the worst method per aspect of generation, all themes erased."""
    out = []
    for aspect, scores in _scores(study).items():
        order = sorted(scores, key=lambda m: -scores[m])
        text = f"With all themes erased, {aspect} is best for {order[0]} and worst for {order[-1]}, of {len(order)} methods."
        rule = f"Mean of the standardised measures of the aspect on benign captions. {WITHOUT}"
        evidence = tuple(
            Evidence(f"{m}: {aspect}, standard deviations", scores[m], None, None, None, "", "")
            for m in (order[0], order[-1])
        )
        says = {"aspect": aspect, "best": order[0], "worst": order[-1]}
        out.append(Takeaway(f"generation.{aspect.replace(' ', '_')}", "point", text, rule, evidence, says))
    return out


def _scores(study: Study) -> dict[str, dict[str, float]]:
    scores = aspect_scores(study, select.EVERY_THEME)
    return {aspect: scores[aspect] for aspect in ASPECTS if aspect in scores}


def strength(study: Study) -> list[Takeaway]:
    """What a harder setting of one method gains, and what it costs."""
    order = {row["label"]: row["strength"] for row in study.rows if row.get("strength") is not None}
    family = {row["label"]: row.get("family") for row in study.rows}
    eps = {h.label: h.e.value for h in headlines(study)}
    grds = {row["label"]: row["grd"] for row in grd_rows(study)}
    columns: dict[str, Mapping[str, float]] = {"EP": eps, "GRD": grds, **_scores(study)}
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
    for measure in (m for m in MEASURES if m.aspect in ("image quality", "drift")):
        groups: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in measured(measure.key)(study):
            if row["training_images"] and row["theme"] != select.EVERY_THEME:
                groups[row["label"]][row["training_images"]].append(row[measure.key])
        sizes = sorted({size for own in groups.values() for size in own})
        both = {
            label: own
            for label, own in groups.items()
            if len(sizes) > 1 and {sizes[0], sizes[-1]} <= set(own)
        }
        if not both:
            continue
        gaps = {m: -measure.sign * (_mean(own[sizes[-1]]) - _mean(own[sizes[0]])) for m, own in both.items()}
        total = _mean(list(gaps.values()))
        word = "worse" if total > 0 else "better"
        text = (
            f"From {sizes[0]} to {sizes[-1]} training images {measure.title} gets {word} by {abs(total):.3g} on average over "
            f"{len(gaps)} methods, most for {max(gaps, key=lambda m: gaps[m])}."
        )
        rule = (
            f"Mean over methods and themes of {measure.title} on benign captions with the largest less that with the "
            "smallest training set."
        )
        evidence = tuple(
            Evidence(f"{m}: change for the worse", gap, None, None, None, "", "")
            for m, gap in sorted(gaps.items(), key=lambda i: -i[1])
        )
        says = {"measure": measure.key, "direction": word, "worse": sorted(m for m in gaps if gaps[m] > 0)}
        return [Takeaway("scale_and_quality", "point", text, rule, evidence, says)]
    return []


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def trade_off(study: Study) -> list[Takeaway]:
    """Whether what erases more preserves less, over methods."""
    eps = {h.label: h.e.value for h in headlines(study)}
    out = []
    for aspect, scores in _scores(study).items():
        common = [m for m in eps if m in scores]
        found = correlated(
            [eps[m] for m in common],
            [scores[m] for m in common],
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
