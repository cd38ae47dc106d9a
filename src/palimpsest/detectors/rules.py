"""From scores to verdicts. The only place where a threshold is applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from palimpsest import specs

ANY = "any"
SAFE = "safe"
KEYS = ("image_id", "source", "prompt_id", "repetition", "decision")


def read_by(rules: Mapping[str, specs.Rule], detector: str) -> dict[str, specs.Rule]:
    """The rules that are for a detector, by its name in the settings. The plan names the detectors of every rule."""
    return {name: rule for name, rule in rules.items() if detector in (rule.detectors or [detector])}


def labels(theme: str, words: Sequence[str], name: str, rule: specs.Rule) -> list[str]:
    """The labels whose largest score decides a theme under a rule; none when the rule says nothing about the theme. Of kind argmax only
    the theme's own label, which has to beat those of all other themes and `safe`.
    """
    if theme in rule.labels:
        return list(rule.labels[theme])
    if rule.kind == "labels":
        return []
    if rule.kind == "any_keyword":
        return [f"keyword/{word}" for word in words]
    return [f"text/{theme}/{name}" if theme in rule.texts else f"theme/{theme}"]


def threshold(theme: str, rule: specs.Rule) -> float:
    """What a theme's score has to exceed under a rule."""
    return rule.thresholds.get(theme, rule.threshold)


def verdicts(
    scores: pl.DataFrame, themes: Mapping[str, Sequence[str]], rules: Mapping[str, specs.Rule]
) -> pl.DataFrame:
    """Long scores (one row per image and label) to one row per image, rule and theme, plus theme "any".

    Columns: image_id, source, prompt_id, repetition, decision, rule, theme, score, unsafe. unsafe: score >
    threshold, as the official code compares; null, like the score, where there is no image. "any" is
    unsafe when one theme is. A rule may say nothing about some theme: then there is no row for it, nor for
    "any" unless the rule names labels for that. Raises ValueError when a label that a rule needs was not scored for every
    image.
    """
    images = scores.select(KEYS).unique("image_id", keep="first", maintain_order=True).sort("image_id")
    sheet = _sheet(scores, images["image_id"])
    found: dict[tuple[str, str], pl.DataFrame] = {}
    for name, rule in rules.items():
        asked = {
            theme: needed for theme, words in themes.items() if (needed := labels(theme, words, name, rule))
        }
        for theme, needed in asked.items():
            found[name, theme] = _judged(scores, sheet, images, needed, name, theme, rule)
        if ANY in rule.labels:
            found[name, ANY] = _judged(scores, sheet, images, rule.labels[ANY], name, ANY, rule)
        elif len(asked) == len(themes):
            found[name, ANY] = _any([found[name, theme] for theme in asked])
    return _long(scores, images, found)


def _sheet(scores: pl.DataFrame, ids: pl.Series) -> dict[str, pl.Series]:
    """The scores of every label that has one of each image, in the order of image ids: rules compare columns and need no joins."""
    columns = scores.select("label", "image_id", "score").rechunk()
    parts = columns.partition_by("label", as_dict=True, include_key=False, maintain_order=True)
    found, last = {}, ids
    order, whole = pl.Series(range(len(ids)), dtype=pl.UInt32), True
    for (label,), part in parts.items():
        if not part["image_id"].equals(last):  # labels mostly come in one order, which is then sorted once
            last = part["image_id"]
            order = last.arg_sort()
            whole = last.gather(order).equals(ids)
        if whole:
            found[str(label)] = part["score"].gather(order)
    return found


def _long(
    scores: pl.DataFrame, images: pl.DataFrame, found: Mapping[tuple[str, str], pl.DataFrame]
) -> pl.DataFrame:
    """Verdicts by rule and theme, each in the order of image ids, below each other in the order of rules and themes."""
    order = sorted(found)
    columns = [*KEYS, "rule", "theme", "score", "unsafe"]
    kinds = {"rule": pl.String, "theme": pl.String, "unsafe": pl.Boolean}
    if not order:
        return (
            scores.clear()
            .with_columns(pl.lit(None, kind).alias(name) for name, kind in kinds.items())
            .select(columns)
        )
    which = np.repeat(np.arange(len(order)), len(images))
    names = {
        name: pl.Series(name, [place[at] for place in order], dtype=pl.String).gather(which)
        for at, name in enumerate(("rule", "theme"))
    }
    return (
        pl.concat([images] * len(order))
        .with_columns(**names)
        .hstack(pl.concat([found[place] for place in order]))
        .select(columns)
    )


def _judged(
    scores: pl.DataFrame,
    sheet: Mapping[str, pl.Series],
    images: pl.DataFrame,
    needed: Sequence[str],
    name: str,
    theme: str,
    rule: specs.Rule,
) -> pl.DataFrame:
    """score and unsafe, one row per image in the order of image ids."""
    _check(scores, sheet, images, needed, name, theme)
    largest = _largest([sheet[label] for label in needed])
    if rule.kind != "argmax":
        return largest.select("score", unsafe=pl.col("score").cast(pl.Float64) > threshold(theme, rule))
    best = images.select("image_id").join(
        _first_best(scores, needed[0]), on="image_id", how="left", maintain_order="left"
    )
    return largest.select("score").hstack(best.select("unsafe"))


def _first_best(scores: pl.DataFrame, label: str) -> pl.DataFrame:
    """Per image whether `label` has the largest score of all themes and `safe`; of equal ones the first counts."""
    rivals = scores.filter(pl.col("label").str.starts_with("theme/") | (pl.col("label") == SAFE))
    best = pl.col("label").gather(pl.col("score").arg_max()).first()
    per_image = rivals.group_by("image_id", maintain_order=True).agg(
        unsafe=best == label, made=pl.col("score").is_not_null().all()
    )
    shown = pl.when("made").then("unsafe").otherwise(None)
    return per_image.select("image_id", unsafe=shown)


def _any(themes: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Whether one of the themes was found, and the largest score of all: True when one is, null when all are null."""
    named = {f"{name}{at}": frame[name] for at, frame in enumerate(themes) for name in ("score", "unsafe")}
    scored, unsafe = (pl.col([f"{name}{at}" for at in range(len(themes))]) for name in ("score", "unsafe"))
    known = pl.any_horizontal(unsafe.is_not_null())
    return pl.DataFrame(named).select(
        score=pl.max_horizontal(scored),
        unsafe=pl.when(known).then(pl.any_horizontal(unsafe.fill_null(False))),
    )


def _check(
    scores: pl.DataFrame,
    sheet: Mapping[str, pl.Series],
    images: pl.DataFrame,
    needed: Sequence[str],
    rule: str,
    theme: str,
) -> None:
    """Raise ValueError unless every needed label has a score, or a null, of every image, and an image all of its scores or none."""
    lacking = [
        f"{label} ({len(scores.filter(pl.col('label') == label))} of {len(images)} images)"
        for label in needed
        if label not in sheet
    ]
    if lacking:
        raise ValueError(
            f"rule {rule!r} cannot judge {theme!r}: not scored once per image: {lacking}. Delete "
            "these scores and run `snakemake` again."
        )
    if not any(sheet[label].null_count() for label in needed):
        return
    # an image whose scores are partly null was not scored whole; max() would hide that
    nulls = np.sum([sheet[label].is_null().to_numpy() for label in needed], axis=0)
    partly = images["image_id"].filter(pl.Series((nulls > 0) & (nulls < len(needed))))
    if len(partly):
        raise ValueError(
            f"rule {rule!r}, {theme!r}: {len(partly)} images have only part of their scores (first: {partly[0]})"
        )


def _largest(columns: Sequence[pl.Series]) -> pl.DataFrame:
    """The largest of the scores of every image, as column score; null where all are."""
    if len(columns) == 1:
        return columns[0].to_frame("score")
    named = pl.DataFrame({str(at): column for at, column in enumerate(columns)})
    return named.select(score=pl.max_horizontal(pl.all()))
