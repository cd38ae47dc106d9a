"""Rules on what comes before any erasing: which detector judges, and whether the toxicity of a prompt foretells its image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from palimpsest.metrics.ranks import ranks
from palimpsest.reports import definitions, select
from palimpsest.reports.conclusions.study import Study
from palimpsest.reports.evidence import Evidence, Level, Takeaway, percent, signed

RANKS = definitions.of("rank_correlation")
WEAK = 0.5  # a rank correlation below this leaves most of the order unexplained (r^2 below a quarter)


def judge_choice(study: Study) -> list[Takeaway]:
    """The detector closest to human labels."""
    themes: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for row in study.judges:
        themes[row["theme"]][row["detector"]] = row
    common = sorted(set.intersection(*(set(own) for own in themes.values()))) if themes else []
    if len(common) < 2:
        return []
    means = {
        m: {key: _average([own[m][key] for own in themes.values()]) for key in ("accuracy", "recall", "f1")}
        for m in common
    }
    best = max(common, key=lambda m: means[m]["f1"])
    leads = {
        key: sorted(t for t, own in themes.items() if max(common, key=lambda m: own[m][key]) == best)
        for key in ("accuracy", "recall", "f1")
    }
    text = (
        f"Of {len(common)} detectors that judge every theme {best} agrees best with people: mean F1 "
        f"{percent(means[best]['f1'])}; it leads in F1 on "
        f"{len(leads['f1'])}, in recall on {len(leads['recall'])} and in accuracy on {len(leads['accuracy'])} of {len(themes)} themes."
    )
    rule = "Highest mean F1 against human labels over the themes, of the detectors that judge all of them."
    evidence = tuple(
        Evidence(f"{m}: mean F1", means[m]["f1"], None, None, None)
        for m in sorted(common, key=lambda m: -means[m]["f1"])
    )
    return [Takeaway("judge_choice", "point", text, rule, evidence, {"best": best, "leads": leads})]


def toxicity(study: Study) -> list[Takeaway]:
    """Whether the toxicity of a prompt tells what its image will show."""
    return _by_data_set(study) if study.published else _by_prompt(study)


def _by_prompt(study: Study) -> list[Takeaway]:
    """From the images of the base model, all data sets and themes together."""
    rows = [r for r in study.toxicity if r["dataset"] == "overall" and r["theme"] == select.ANY]
    whole = next((r for r in rows if r["bin"] == "all" and r["correlation"] is not None), None)
    if whole is None:
        return []
    low, high = whole["correlation_low"], whole["correlation_high"]
    weak = max(abs(low), abs(high)) < WEAK
    strong = min(abs(low), abs(high)) >= WEAK and low * high > 0
    level: Level = "finding" if weak or strong else "open"
    end = (
        "toxic words alone do not tell which images are unsafe"
        if weak
        else "toxic prompts give unsafe images"
        if strong
        else f"the interval does not decide whether it is weak (below {WEAK})"
    )
    shares = ", ".join(f"{percent(r['share'])} at {r['bin']}" for r in rows if r["bin"] != "all")
    text = (
        f"Over {whole['n_prompts']} prompts toxicity and the share of unsafe images have a rank correlation of "
        f"{signed(whole['correlation'])} ({signed(low)} to {signed(high)}): {end}. Unsafe images of the base by toxicity: {shares}."
    )
    rule = f"Spearman's rank correlation over prompts, weak when its whole interval lies within {WEAK} of 0; any theme counts as unsafe."
    evidence = [
        Evidence("rank correlation", whole["correlation"], low, high, whole["n_prompts"], "", "", RANKS)
    ]
    evidence += [
        Evidence(f"unsafe at toxicity {r['bin']}", r["share"], r["share_low"], r["share_high"], r["n"])
        for r in rows
        if r["bin"] != "all"
    ]
    says = {"weak": weak, "told_apart": weak or strong}
    return [Takeaway("toxicity", level, text, rule, tuple(evidence), says)]


def _by_data_set(study: Study) -> list[Takeaway]:
    """From published shares per data set."""
    rows = [r for r in study.toxicity if r["dataset"] != "overall"]
    if len(rows) < 3:
        return []
    toxic = max(rows, key=lambda r: r["toxicity_high"])
    unsafe = sorted(rows, key=lambda r: r["nsfw"])
    order = [float(r) for r in ranks([r["nsfw"] for r in rows])]
    words = [float(r) for r in ranks([r["toxicity_high"] for r in rows])]
    n = len(rows)
    r = 1 - 6 * sum((a - b) ** 2 for a, b in zip(order, words, strict=True)) / (n * (n * n - 1))
    text = (
        f"Over {n} data sets the share of highly toxic prompts and the share of unsafe images have a rank correlation of "
        f"{signed(r)}: the most "
        f"toxic one, {toxic['dataset']} ({percent(toxic['toxicity_high'])} highly toxic), has {percent(toxic['nsfw'])} "
        "unsafe images; the most "
        f"unsafe images, {percent(unsafe[-1]['nsfw'])}, come from {unsafe[-1]['dataset']} "
        f"({percent(unsafe[-1]['toxicity_high'])} highly toxic)."
    )
    rule = f"Spearman's rank correlation over data sets, weak below {WEAK}; {n} data sets allow no interval."
    evidence = tuple(Evidence(f"unsafe images, {r['dataset']}", r["nsfw"], None, None, None) for r in unsafe)
    says = {
        "weak": r < WEAK,
        "most_toxic": toxic["dataset"],
        "least_unsafe": unsafe[0]["dataset"],
        "most_unsafe": unsafe[-1]["dataset"],
    }
    return [Takeaway("toxicity", "point", text, rule, evidence, says)]


def _average(values: list[float]) -> float:
    return sum(values) / len(values)
