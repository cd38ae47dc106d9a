"""Thresholds of a judge from labels: per theme the one that does best on labelled images, and by cross-validation what it is worth.

    python -m palimpsest.detectors.calibration --labels labels.csv SCORES.parquet ...

The labels of the images that a threshold was picked on say too much good of it. So images are parted into folds by prompt, each fold is
judged by the threshold that the others pick, and those verdicts together give the figures that are printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    import polars as pl

Goal = Literal["balanced_accuracy", "f1", "accuracy"]
GOALS: tuple[Goal, ...] = get_args(Goal)


@dataclass(frozen=True)
class Calibrated:
    """threshold: picked on all images; value: of the goal by cross-validation; at_half: the same with threshold 0.5;
    spread: least and largest threshold that the folds picked; n, positives: images and how many of them are labelled."""

    threshold: float
    value: float
    at_half: float
    spread: tuple[float, float]
    n: int
    positives: int


def value_of(goal: Goal, truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    """The goal's value of verdicts bool [n] (or [k, n]) against labels bool [n]; NaN where it is not defined."""
    hits = (said & truth).sum(axis=-1)
    alarms = (said & ~truth).sum(axis=-1)
    return _values(goal, hits, alarms, truth.sum(), (~truth).sum())


def _values(goal: Goal, hits: np.ndarray, alarms: np.ndarray, positives: int, negatives: int) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        if goal == "balanced_accuracy":
            return (hits / positives + 1 - alarms / negatives) / 2
        if goal == "f1":
            return 2 * hits / (positives + hits + alarms)
        return (hits + negatives - alarms) / (positives + negatives)


def best_threshold(scores: np.ndarray, truth: np.ndarray, goal: Goal = "balanced_accuracy") -> float:
    """The threshold in [0, 1] with the best value of `score > threshold`, scores float [n] in [0, 1] and labels bool [n].

    Only the middles between neighbouring scores differ; of equally good ones the nearest to 0.5 is taken. Raises ValueError when only one
    answer occurs.
    """
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        raise ValueError(
            f"{positives} labelled and {negatives} unlabelled images: a threshold needs some of both"
        )
    levels = np.unique(scores.astype(np.float64))
    cuts = np.concatenate([[min(0.0, levels[0])], (levels[1:] + levels[:-1]) / 2, [max(1.0, levels[-1])]])
    above = [np.sort(scores[side].astype(np.float64)) for side in (truth, ~truth)]
    hits, alarms = (len(side) - np.searchsorted(side, cuts, side="right") for side in above)
    values = _values(goal, hits, alarms, positives, negatives)
    good = cuts[values >= np.nanmax(values) - 1e-12]
    return float(good[np.argmin(np.abs(good - 0.5))])


def folds_of(groups: Sequence[object], truth: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """A fold for every image, int [n]: images of a group stay together, labelled ones are spread evenly (StratifiedGroupKFold).

    Raises ValueError for fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    _, number = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if folds < 2 or number.max() + 1 < folds:
        raise ValueError(
            f"{folds} folds of {number.max() + 1} prompts: give at least 2 folds, and a prompt for each"
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    found = np.zeros(len(truth), np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(truth, truth, number)):
        found[held_out] = fold
    return found


def calibrate(
    scores: np.ndarray,
    truth: np.ndarray,
    groups: Sequence[object],
    *,
    goal: Goal = "balanced_accuracy",
    folds: int = 5,
    seed: int = 0,
) -> Calibrated:
    """A threshold for scores float [n] of images with labels bool [n]; groups: the prompt of every image."""
    if goal not in GOALS:
        raise ValueError(f"goal {goal!r} does not exist; allowed: {list(GOALS)}")
    scores, truth = np.asarray(scores, np.float64), np.asarray(truth, bool)
    fold, said, picked = folds_of(groups, truth, folds, seed), np.zeros(len(truth), bool), []
    for number in range(folds):
        here = fold == number
        picked.append(best_threshold(scores[~here], truth[~here], goal))
        said[here] = scores[here] > picked[-1]
    return Calibrated(
        best_threshold(scores, truth, goal),
        float(value_of(goal, truth, said)),
        float(value_of(goal, truth, scores > 0.5)),
        (min(picked), max(picked)),
        len(truth),
        int(truth.sum()),
    )


def calibrate_themes(
    scores: pl.DataFrame, labels: pl.DataFrame, themes: Mapping[str, str] | None = None, **how: object
) -> dict[str, Calibrated]:
    """A threshold per theme from long scores (step `score`) and labels: columns image_id and one 0/1 column per theme.

    themes: theme -> the score label to read (default: `theme/<theme>` for every column of the labels). Images without a label or a score
    are left out. Raises ValueError when a label was never scored or no image is in both.
    """
    import polars as pl

    themes = themes or {name: f"theme/{name}" for name in labels.columns if name != "image_id"}
    found = {}
    for theme, label in themes.items():
        own = scores.filter(pl.col("label") == label).select("image_id", "source", "prompt_id", "score")
        if own.is_empty():
            known = sorted(scores["label"].unique().to_list())
            raise ValueError(f"label {label!r} was never scored; the table has {known}")
        both = own.join(labels.select("image_id", truth=theme), on="image_id").drop_nulls(["score", "truth"])
        if both.is_empty():
            raise ValueError(
                f"no image is both labelled and scored; image ids look like {own['image_id'][0]!r} and {labels['image_id'][0]!r}"
            )
        prompts = [f"{source}/{prompt}" for source, prompt in both.select("source", "prompt_id").iter_rows()]
        found[theme] = calibrate(both["score"].to_numpy(), both["truth"].to_numpy() > 0, prompts, **how)  # type: ignore[arg-type]
    return found


def said(found: Mapping[str, Calibrated], goal: str) -> str:
    """A rule for params.yaml, what it is worth in comments."""
    lines = ["  calibrated:", "    kind: calibrated", "    thresholds:"]
    for theme, one in found.items():
        lines.append(
            f"      {theme}: {one.threshold:.4f}  # {goal} {one.value:.3f} by cross-validation ({one.at_half:.3f} at 0.5); folds picked "
            f"{one.spread[0]:.3f} to {one.spread[1]:.3f}; {one.positives} of {one.n} images labelled"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Command line: print the rule."""
    import polars as pl

    from palimpsest import store

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scores", nargs="+", help="score tables of one detector on the unerased model")
    parser.add_argument("--labels", required=True, help="CSV: image_id and one 0/1 column per theme")
    parser.add_argument("--goal", choices=GOALS, default="balanced_accuracy")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    scores = pl.concat([store.read_parquet(path) for path in given.scores])
    found = calibrate_themes(
        scores, pl.read_csv(given.labels), goal=given.goal, folds=given.folds, seed=given.seed
    )
    print("rules:\n" + said(found, given.goal))


if __name__ == "__main__":
    main()
