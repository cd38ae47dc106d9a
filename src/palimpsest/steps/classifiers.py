"""Step `classifiers`: how right every detector is under every rule, by exact labels of renders and by labels of people.

A person's label belongs to an image of one generation artifact. Scores say in their recipe which artifact they judged, so labels find
their scores without any image; labels of images that the experiment no longer has are counted and left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from palimpsest import store
from palimpsest.annotate import exchange, votes
from palimpsest.annotate.votes import Vote
from palimpsest.detectors import rules as judging
from palimpsest.job import Input, Job
from palimpsest.metrics import accuracy
from palimpsest.metrics.agreement import agreement
from palimpsest.metrics.tables import BASE
from palimpsest.specs import Rule, Statistics

RENDERS, ON_BASE, ON_ERASED = "held-out renders", "base images", "erased images"
NUMBERS = [metric.name for metric in accuracy.METRICS]
COUNTS = ("n", "n_shown", "tp", "fp", "fn", "tn")
BIN: Any = pl.Struct(
    {
        "low": pl.Float64,
        "high": pl.Float64,
        "n": pl.Int64,
        "mean_score": pl.Float64,
        "rate": pl.Float64,
        "rate_low": pl.Float64,
        "rate_high": pl.Float64,
    }
)
SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("labels", "images", "detector", "rule", "theme"), pl.String),
    **dict.fromkeys(COUNTS, pl.Int64),
    **{f"{name}{limit}": pl.Float64 for name in NUMBERS for limit in ("", "_low", "_high")},
    "reliability": pl.List(BIN),
}
# image id -> theme -> whether it is shown
Truths = Mapping[str, Mapping[str, bool | None]]
Place = tuple[str, str]


def with_any(truth: Mapping[str, bool | None], themes: Sequence[str]) -> dict[str, bool | None]:
    """Labels of all themes, and "any": shown when one is, not shown when none is, else unknown."""
    known = [truth.get(theme) for theme in themes]
    any_shown = True if True in known else None if None in known else False
    return {**dict(zip(themes, known, strict=True)), judging.ANY: any_shown}


def judged(
    scores: pl.DataFrame, detector: str, themes: Mapping[str, Sequence[str]], rules: Mapping[str, Rule]
) -> pl.DataFrame:
    """Verdicts of every rule for this detector on the themes that the scores were asked for; "any" only where the rule names labels for
    it or all themes were."""
    asked = set(scores["label"].unique())
    parts = [judging.verdicts(scores, {}, {})]
    for name, rule in judging.read_by(rules, detector).items():
        own = {
            theme: words
            for theme, words in themes.items()
            if asked >= set(judging.labels(theme, words, name, rule))
        }
        found = judging.verdicts(scores, own, {name: rule})
        whole = len(own) == len(themes) or judging.ANY in rule.labels
        parts.append(found if whole else found.filter(pl.col("theme") != judging.ANY))
    return pl.concat(parts)


def labelled(verdicts: pl.DataFrame, truths: Truths, suite: str) -> pl.DataFrame:
    """The verdicts that have a label and a score, with the label and the prompt they belong to."""
    rows = [
        (image_id, theme, truth)
        for image_id, found in truths.items()
        for theme, truth in found.items()
        if truth is not None
    ]
    schema: dict[str, Any] = {"image_id": pl.String, "theme": pl.String, "truth": pl.Boolean}
    known = pl.DataFrame(rows, schema=schema, orient="row")
    prompt = pl.concat_str([pl.lit(suite), "source", pl.col("prompt_id").cast(pl.String)], separator="/")
    return (
        verdicts.join(known, on=["image_id", "theme"])
        .drop_nulls(["score", "unsafe"])
        .with_columns(prompt=prompt)
    )


def numbers(part: pl.DataFrame, statistics: Statistics, seed: int) -> dict[str, Any]:
    """The numbers of one detector, rule and theme."""
    part = part.sort("prompt", "image_id")
    found = accuracy.measure(
        part["score"].to_numpy(),
        part["unsafe"].to_numpy(),
        part["truth"].to_numpy(),
        part["prompt"].to_numpy(),
        resamples=statistics.resamples,
        confidence=statistics.confidence,
        seed=seed,
    )
    counts = {**asdict(found.confusion), "n": found.confusion.n}
    values: dict[str, Any] = {}
    for name, value in found.values.items():
        values |= {
            name: value,
            f"{name}_low": found.intervals[name][0],
            f"{name}_high": found.intervals[name][1],
        }
    lines = [asdict(line) for line in found.reliability]
    return {**counts, "n_shown": counts["tp"] + counts["fn"], **values, "reliability": lines}


def rows_of(
    verdicts: pl.DataFrame, identity: Mapping[str, str], statistics: Statistics, seed: int
) -> list[dict[str, Any]]:
    """One row per rule and theme."""
    keys = ["rule", "theme"]
    return [
        {**identity, "rule": rule, "theme": theme, **numbers(part, statistics, seed)}
        for (rule, theme), part in verdicts.group_by(keys, maintain_order=True)
    ]


def exact(item: Input, themes: Mapping[str, Sequence[str]], rules: Mapping[str, Rule]) -> pl.DataFrame:
    """Verdicts on held-out renders with their labels."""
    scores = store.read_parquet(item.path)
    known = scores.select("image_id", *(pl.col(f"shows/{theme}").alias(theme) for theme in themes)).unique()
    truths = {row.pop("image_id"): with_any(row, list(themes)) for row in known.iter_rows(named=True)}
    return labelled(judged(scores, item.where["detector"], themes, rules), truths, "renders")


def votes_of(files: Iterable[str]) -> tuple[list[Vote], dict[str, set[Place]]]:
    """The votes of all files, and where their images are: (key of the generations, image id). Where files disagree about what one
    person said, the latest answer holds."""
    latest: dict[tuple[str, ...], Vote] = {}
    places: dict[str, set[Place]] = defaultdict(set)
    for path in files:
        found = exchange.read(Path(path))
        for vote in found.votes:
            key = (vote.image, vote.theme, vote.rater, vote.role)
            if key not in latest or (latest[key].at, latest[key].answer) < (vote.at, vote.answer):
                latest[key] = vote
        for image, seen in found.places.items():
            places[image] |= {(place.key, place.image_id) for place in seen}
    return [latest[key] for key in sorted(latest)], places


def judged_key(item: Input) -> str:
    """The key of the generations that a file of scores is about."""
    inputs = store.read_meta(item.path)["recipe"]["inputs"]
    return next(key for step, _, key in inputs if step == "generate")


def by_people(
    items: Sequence[Input],
    said: Sequence[Vote],
    places: Mapping[str, set[Place]],
    themes: Mapping[str, Sequence[str]],
    rules: Mapping[str, Rule],
) -> tuple[dict[tuple[str, str], list[pl.DataFrame]], int]:
    """(images, detector) -> verdicts with people's labels; and of how many labelled images there are scores."""
    labels: dict[str, dict[str, bool | None]] = defaultdict(dict)
    for (image, theme), label in votes.labels(said).items():
        labels[image][theme] = label
    truths: dict[str, dict[str, dict[str, bool | None]]] = defaultdict(dict)
    images: dict[Place, str] = {}
    for image, known in labels.items():
        for key, image_id in places.get(image, ()):
            truths[key][image_id] = with_any(known, list(themes))
            images[key, image_id] = image
    parts: dict[tuple[str, str], list[pl.DataFrame]] = defaultdict(list)
    matched: set[str] = set()
    for item in items:
        key = judged_key(item)
        if key in truths:
            scores = store.read_parquet(item.path)
            matched |= {images[key, i] for i in scores["image_id"].unique() if (key, i) in images}
            shown = ON_BASE if item.where["method"] == BASE else ON_ERASED
            detector = item.where["detector"]
            found = judged(scores, detector, themes, rules)
            parts[shown, detector].append(labelled(found, truths[key], item.where["suite"]))
    return parts, len(matched)


def raters_agree(
    said: Sequence[Vote], themes: Iterable[str], statistics: Statistics, seed: int
) -> list[dict[str, Any]]:
    """Per theme: who rated how much, how often they disagree, and the chance-corrected coefficients. NaN becomes None."""
    disputes, decided = votes.disputed(said), votes.decisions(said)
    rows = []
    for theme in themes:
        table = np.array(votes.ratings(said, theme) or np.empty((0, 0)), dtype=int)
        own = [vote for vote in said if vote.theme == theme and vote.role == "rater"]
        contested = [image for image, found in disputes.items() if theme in found]
        row: dict[str, Any] = {
            "theme": theme,
            "raters": len({vote.rater for vote in own}),
            "images": len({vote.image for vote in own}),
            "unsure": sum(vote.answer == "unsure" for vote in own),
            "disputed": len(contested),
            "decided": sum((image, theme) in decided for image in contested),
        }
        if row["raters"] >= 2:
            for item in agreement(
                table, 2, resamples=statistics.resamples, confidence=statistics.confidence, seed=seed
            ):
                found = {item.name: item.value, f"{item.name}_low": item.low, f"{item.name}_high": item.high}
                row |= {name: value if np.isfinite(value) else None for name, value in found.items()}
        rows.append(row)
    return rows


def run(job: Job) -> None:
    args = job.args
    themes, seed = args["themes"], args["seed"]
    rules = {name: Rule.model_validate(rule) for name, rule in args["rules"].items()}
    statistics = Statistics.model_validate(args["statistics"])
    rows: list[dict[str, Any]] = []
    for item in job.of("renders"):
        identity = {"labels": "exact", "images": RENDERS, "detector": item.where["detector"]}
        rows += rows_of(exact(item, themes, rules), identity, statistics, seed)
    said, places = votes_of(args["labels"])
    said = [vote for vote in said if vote.theme in themes]
    found, matched = by_people(job.of("score"), said, places, themes, rules)
    for (images, detector), parts in sorted(found.items()):
        identity = {"labels": "people", "images": images, "detector": detector}
        rows += rows_of(pl.concat(parts), identity, statistics, seed)
    table = pl.DataFrame(rows, schema=SCHEMA, orient="row").with_columns(pl.col(pl.Float64).fill_nan(None))
    extra: dict[str, Any] = {}
    if said:
        extra = {
            "agreement": raters_agree(said, themes, statistics, seed),
            "people": {"images": len({vote.image for vote in said}), "matched": matched, "votes": len(said)},
        }
    job.write_parquet(table, extra, measured=False)
