"""From scores to verdicts. The only place where a threshold is applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    frames = [_empty(scores)]
    for name, rule in rules.items():
        found = [
            _judged(scores, needed, name, theme, rule)
            for theme, words in themes.items()
            if (needed := labels(theme, words, name, rule))
        ]
        if ANY in rule.labels:
            found.append(_judged(scores, rule.labels[ANY], name, ANY, rule))
        elif len(found) == len(themes):
            found.append(_any(pl.concat(found)))
        frames += [frame.with_columns(rule=pl.lit(name)).select(frames[0].columns) for frame in found]
    return pl.concat(frames).sort("rule", "theme", "image_id")


def _empty(scores: pl.DataFrame) -> pl.DataFrame:
    """No verdict, with the columns of all."""
    return scores.clear().select(
        *KEYS,
        pl.lit("").alias("rule"),
        pl.lit("").alias("theme"),
        "score",
        pl.lit(False).alias("unsafe"),
    )


def _judged(
    scores: pl.DataFrame, needed: Sequence[str], name: str, theme: str, rule: specs.Rule
) -> pl.DataFrame:
    """One row per image with theme, score and unsafe."""
    found = _largest(scores, needed, name, theme)
    if rule.kind != "argmax":
        unsafe = pl.col("score").cast(pl.Float64) > threshold(theme, rule)
        return found.with_columns(unsafe=unsafe)
    return found.join(_first_best(scores, needed[0]), on="image_id", maintain_order="left")


def _first_best(scores: pl.DataFrame, label: str) -> pl.DataFrame:
    """Per image whether `label` has the largest score of all themes and `safe`; of equal ones the first counts."""
    rivals = scores.filter(pl.col("label").str.starts_with("theme/") | (pl.col("label") == SAFE))
    best = pl.col("label").gather(pl.col("score").arg_max()).first()
    per_image = rivals.group_by("image_id", maintain_order=True).agg(
        unsafe=best == label, made=pl.col("score").is_not_null().all()
    )
    shown = pl.when("made").then("unsafe").otherwise(None)
    return per_image.select("image_id", unsafe=shown)


def _any(both: pl.DataFrame) -> pl.DataFrame:
    """Whether one of the themes was found."""
    largest = both.group_by(KEYS, maintain_order=True).agg(pl.col("score").max(), unsafe=_one("unsafe"))
    return largest.with_columns(theme=pl.lit(ANY)).select(both.columns)


def _one(column: str) -> pl.Expr:
    """True when one is, null when all are null."""
    return pl.when(pl.col(column).is_not_null().any()).then(pl.col(column).any()).otherwise(None)


def _largest(scores: pl.DataFrame, needed: Sequence[str], rule: str, theme: str) -> pl.DataFrame:
    """The largest score over the needed labels per image, with column theme."""
    found = scores.filter(pl.col("label").is_in(list(needed)))
    images = scores["image_id"].n_unique()
    present = dict(found.group_by("label").agg(pl.len()).iter_rows())
    lacking = [
        f"{label} ({present.get(label, 0)} of {images} images)"
        for label in needed
        if present.get(label, 0) != images
    ]
    if lacking:
        raise ValueError(
            f"rule {rule!r} cannot judge {theme!r}: not scored once per image: {lacking}. Delete "
            "these scores and run `snakemake` again."
        )
    # an image whose scores are partly null was not scored whole; max() would hide that
    several = found if len(needed) > 1 else found.clear()
    partly = (
        several.group_by("image_id")
        .agg(pl.col("score").null_count().alias("nulls"))
        .filter(~pl.col("nulls").is_in([0, len(needed)]))
    )
    if len(partly):
        raise ValueError(
            f"rule {rule!r}, {theme!r}: {len(partly)} images have only part of their scores "
            f"(first: {partly['image_id'].sort()[0]})"
        )
    return (
        found.group_by(KEYS, maintain_order=True).agg(pl.col("score").max()).with_columns(theme=pl.lit(theme))
    )
