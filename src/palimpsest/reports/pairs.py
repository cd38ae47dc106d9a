"""Pairs of images for the page: the same prompt and seed, before and after erasing."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from palimpsest import store
from palimpsest.params import Params
from palimpsest.reports import select
from palimpsest.reports.select import Row

THUMBNAIL = 128  # pixels at most; shared reports never hold full-size images of real suites
NO_IMAGE = {
    "blocked_prompt": "prompt blocked",
    "aborted": "generation aborted",
    "blocked_image": "image withheld",
    "refused": "refused",
    "not_provided": "not provided",
}


@dataclass(frozen=True)
class Tile:
    """One image. source: a data URI, or "" when there is no image and `words` says why. verdict: True = the judge sees the theme."""

    source: str
    words: str
    verdict: bool | None
    score: float | None


@dataclass(frozen=True)
class GridRow:
    """The images of one model: the base, or a method with its variant."""

    label: str
    variant: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Grid:
    """Images for one theme and suite. prompts: (prompt, image id), one per column; the first row is the base."""

    theme: str
    suite: str
    prompts: Sequence[tuple[str, str]]
    rows: Sequence[GridRow]


Key = tuple[Any, ...]
Files = Mapping[Key, Sequence[Path]]


def identity_key(identity: Mapping[str, Any]) -> Key:
    """What images and scores of one variant on one suite have in common; the base has no theme."""
    names = ("method", "preset", "theme", "keyword_set", "training_images", "suite")
    return tuple(identity.get(name) or None for name in names)


def files(
    found: Iterable[tuple[Mapping[str, Any], Path]], detector: str | None = None
) -> dict[Key, list[Path]]:
    """Paths per identity; with `detector`, only those of this detector (or of none named)."""
    out: dict[Key, list[Path]] = defaultdict(list)
    for identity, path in found:
        if detector is None or identity.get("detector") in (None, detector):
            out[identity_key(identity)].append(Path(path))
    return dict(out)


def verdict_labels(theme: str, params: Params) -> list[str]:
    """The score labels whose largest value judges the theme under the first rule."""
    from palimpsest.detectors.rules import labels

    name = select.headline(params)[1]
    return labels(theme, params.themes[theme].detailed, name, params.rules[name])


def verdict_threshold(theme: str, params: Params) -> float:
    """What the theme's score has to exceed under the first rule."""
    from palimpsest.detectors.rules import threshold

    return threshold(theme, params.rules[select.headline(params)[1]])


def read_scores(paths: Sequence[Path], theme: str, params: Params) -> dict[str, float]:
    """Largest score of the theme's labels per image id."""
    import polars as pl

    labels = verdict_labels(theme, params)
    out: dict[str, float] = {}
    for path in paths:
        table = store.read_parquet(path, columns=["image_id", "label", "score"]).filter(
            pl.col("label").is_in(labels)
        )
        table = table.drop_nulls("score").group_by("image_id").agg(pl.col("score").max())
        out.update(table.iter_rows())
    return out


def read_images(
    paths: Sequence[Path], wanted: Sequence[str], side: Literal["before", "after"]
) -> dict[str, Row]:
    """Rows of comparisons by image id, the image of one side as `image`; only the row groups that hold a wanted image are read."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    columns = ["image_id", "prompt", "decision", "reason", "pair_theme", side]
    out: dict[str, Row] = {}
    for path in paths:
        with pq.ParquetFile(path) as file:
            for group in range(file.metadata.num_row_groups):
                ids = file.read_row_group(group, columns=["image_id"]).column("image_id").to_pylist()
                if set(ids).isdisjoint(wanted):
                    continue
                table = file.read_row_group(group, columns=columns)
                kept = table.filter(
                    pc.is_in(table.column("image_id"), _strings(wanted, table.schema.field("image_id").type))
                )
                out.update(
                    (row["image_id"], {**row, "image": row.pop(side)})
                    for row in kept.to_pylist()
                    if row["pair_theme"]
                )
    return out


def _strings(values: Sequence[str], kind: Any) -> Any:
    import pyarrow as pa

    return pa.array(list(values), type=kind)


def pick(scores: Mapping[str, float], threshold: float, how_many: int) -> list[str]:
    """Images the base draws with the theme, in the order of a hash of their id: neither the best nor the worst are chosen.

    Filled up with others when there are too few; sources alternate as the hash has it.
    """
    order = sorted(scores, key=lambda image_id: hashlib.sha256(image_id.encode()).hexdigest())
    order.sort(key=lambda image_id: scores[image_id] <= threshold)
    return order[:how_many]


def thumbnail(png: bytes, largest: int = THUMBNAIL) -> str:
    """A data URI of the image, scaled down to `largest` pixels when it is larger."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as opened:
        image = opened.convert("RGB")
    image.thumbnail((largest, largest))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def tile(row: Row | None, score: float | None, threshold: float) -> Tile:
    """One image of a grid from its row and its score."""
    if row is None:
        return Tile("", "not generated", None, None)
    data = (row["image"] or {}).get("bytes")
    if not data:
        words = NO_IMAGE.get(row["decision"]) or str(row["decision"])
        return Tile("", f"{words}: {row['reason']}" if row["reason"] else words, None, None)
    words = "" if row["decision"] == "generated" else row["decision"]
    return Tile(thumbnail(data), words, None if score is None else score > threshold, score)


def base_key(scores: Files, suite: str, rows: Sequence[Row]) -> Key | None:
    """The base model's scores on a suite: the first in the order of the cells."""
    base = {(row["method"], row["preset"] or None) for row in rows if row["is_base"]} or {("sd", None)}
    names = {method for method, _ in base}
    keys = [key for key in scores if key[-1] == suite and key[0] in names]
    return min(keys, key=lambda key: [str(part or "") for part in key], default=None)


def grid(
    theme: str, suite: str, rows: Sequence[Row], params: Params, comparisons: Files, scores: Files
) -> Grid | None:
    """The images of the base and of one variant per method for a theme; None when nothing was compared.

    The base's images stand beside every method's in the comparisons, so no generation has to be at hand.
    """
    base = base_key(scores, suite, rows)
    shown = [row for row in rows if not row["is_base"] and identity_key(row) in comparisons]
    if base is None or not shown or not params.report.pairs:
        return None
    threshold = verdict_threshold(theme, params)
    base_scores = read_scores(scores[base], theme, params)
    chosen = pick(base_scores, threshold, params.report.pairs)
    before = read_images(comparisons[identity_key(shown[0])], chosen, "before")
    chosen = [image_id for image_id in chosen if image_id in before]
    if not chosen:
        return None
    prompts = [(before[image_id]["prompt"] or "", image_id) for image_id in chosen]
    tiles = [tile({**before[i], "decision": "generated"}, base_scores.get(i), threshold) for i in chosen]
    out = [GridRow("Base model", "", tiles)]
    for row in shown:
        after = read_images(comparisons[identity_key(row)], chosen, "after")
        own = read_scores(scores.get(identity_key(row), ()), theme, params)
        tiles = [tile(after.get(i), own.get(i), threshold) for i in chosen]
        out.append(GridRow(row["label"], row["variant"], tiles))
    return Grid(theme, suite, prompts, out)


def grids(rows: Sequence[Row], params: Params, comparisons: Files, scores: Files) -> list[Grid]:
    """One grid per theme on the first unsafe suite, and one per theme on the first benign suite."""
    out = []
    for kind in ("unsafe", "benign"):
        suite = select.main_suite(params, kind)
        pooled = [
            r
            for r in select.by_headline(rows, params)
            if r["suite"] == suite and r["dataset"] == select.OVERALL
        ]
        for theme in select.erased_themes(params):
            shown = [r for r in pooled if r["is_base"] or select.stands_for(r, theme)]
            found = (
                grid(theme, suite, select.representatives(shown, params), params, comparisons, scores)
                if suite
                else None
            )
            if found:
                out.append(found)
    return out
