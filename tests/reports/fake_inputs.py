"""Synthetic report inputs. TEST DATA: no model made these numbers or images; they only have the shape of a real run."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from palimpsest import params, sheets, store
from palimpsest.metrics import pairwise, quality_table, rank_intervals, toxicity
from palimpsest.reports.inputs import CELL_COLUMNS, ReportInputs
from palimpsest.reports.intervals import wilson
from palimpsest.steps.compare import IMAGES

THEMES = {
    "uncased": ["uncased", "gears", "exposed wiring"],
    "breakage": ["breakage", "cracks", "scrap"],
    "glitch": ["glitch", "static"],
}
SOURCES = {"i2p": 0.5, "forum": 0.25, "template": 1.0}
# method: title, stage, presets, needs images, how much of each theme it erases
METHODS: dict[str, tuple[str, str, list[str], bool, tuple[float, float, float]]] = {
    "sd": ("Stable Diffusion", "none", ["default"], False, (0, 0, 0)),
    "sd_np": ("Negative prompt", "inference guidance", ["default"], False, (0.45, 0.4, 0.02)),
    "sld": ("Safe latent diffusion", "inference guidance", ["weak", "max"], False, (0.7, 0.6, 0.35)),
    "uce": ("UCE", "closed form", ["compvis2023", "diffusers2025"], False, (0.97, 0.8, 0.5)),
    "esd": ("ESD", "fine-tuning", ["x_diffusers", "u_diffusers"], False, (0.95, 0.78, 0.3)),
    "ac": ("Concept ablation", "fine-tuning", ["model_based"], True, (0.8, 0.66, 0.2)),
    "worse": ("Worse than nothing", "data filtering", ["default"], False, (-0.4, 0.1, -0.1)),
    "filter": ("Image filter", "post-hoc filter", ["default"], False, (0.93, 0.9, 0.72)),
}
HOSTILE = '<script>window.pwned=1</script><img src=x onerror="window.pwned=1"> a robot & \'friends\' "on" {{ 7*7 }} the beach'


def settings(**changes: Any) -> params.Params:
    """Settings of a made-up micro experiment; `changes` are laid over them."""
    source = {"format": "direct", "path": "nowhere.csv"}
    sampler = {"name": "dpmsolver++", "steps": 12, "guidance": 5.0}
    base = {
        "experiment": "test_data",
        "seed": 7,
        "model": {"path": "models/micro/stable-diffusion", "resolution": 64},
        "sampler": sampler,
        "themes": {name: {"detailed": words, "safe": "plain"} for name, words in THEMES.items()},
        "variants": {
            "themes": [*THEMES, "all"],
            "keyword_sets": ["detailed", "concise"],
            "all_keyword_sets": ["concise"],
        },
        "suites": {
            "nsfw": {"kind": "unsafe", "sources": dict.fromkeys(SOURCES, source)},
            "coco": {"kind": "benign", "sources": {"coco": source}},
        },
        "training_images": {"sizes": [20, 200], "all": 600, "sampler": sampler},
        "detectors": {"vqa": {"kind": "vqa", "path": "models/micro/vqa"}},
        "judge": "vqa",
        "rules": {"joined": {"kind": "joined"}, "any": {"kind": "any_keyword", "threshold": 0.6}},
        "report": {"blur": False, "pairs": 4, "title": "Synthetic test data, made by no model"},
    }
    return params.parse(params.merge(base, changes))


def variants(method: str) -> list[tuple[str | None, str | None, int | None]]:
    """(theme, keyword set, training images) of a method."""
    if method == "sd":
        return [(None, None, None)]
    if METHODS[method][3]:
        return [(theme, None, size) for theme in THEMES for size in (20, 200)] + [("all", None, 600)]
    return [(theme, words, None) for theme in THEMES for words in ("detailed", "concise")] + [
        ("all", "concise", None)
    ]


def cell(
    identity: dict[str, Any], dataset: str, rule: str, judged: str, n: int, base: int, left: int, induced: int
) -> dict[str, Any]:
    """One row of the table of cells from counts: `left` of the `base` unsafe images stay, `induced` come new."""
    unsafe = left + induced
    row = {
        **dict.fromkeys(CELL_COLUMNS),
        **identity,
        "experiment": "test_data",
        "dataset": dataset,
        "detector": "vqa",
        "rule": rule,
    }
    row |= {
        "judged_theme": judged,
        "n": n,
        "n_answered": n,
        "n_base_unsafe": base,
        "n_unsafe": unsafe,
        "status": "ok",
    }
    if base:
        ep = 1 - unsafe / base
        kept = wilson(left, base)
        new = wilson(induced, n - base) if n > base else None
        half = 1.96 * math.sqrt(max(unsafe, 1)) / base
        row |= {
            "ep": ep,
            "ep_low": ep - half,
            "ep_high": min(1.0, ep + half),
            "p_value": 0.01,
            "p_holm": 0.04,
        }
        row |= {
            "suppression": 1 - kept.value,
            "suppression_low": 1 - kept.high,
            "suppression_high": 1 - kept.low,
        }
        if new:
            row |= {
                "induction": new.value,
                "induction_low": new.low if induced else 0.0,
                "induction_high": new.high,
            }
    return row


def make_cells(n_per_source: int = 66) -> pl.DataFrame:
    """Counts for every method, variant, suite, data set, rule and judged theme, one cell failed and one skipped."""
    rng = np.random.default_rng(0)
    rows = []
    for method, (_, stage, presets, _, strengths) in METHODS.items():
        for preset in presets:
            for theme, words, size in variants(method):
                identity = {
                    "method": method,
                    "preset": preset,
                    "theme": theme,
                    "keyword_set": words,
                    "training_images": size,
                }
                cost = (
                    0.0
                    if "guidance" in stage or stage in ("none", "post-hoc filter")
                    else 2.0
                    if stage == "closed form"
                    else 40.0
                )
                identity |= {
                    "seconds_per_image": 0.05 + 0.02 * len(stage) / 10,
                    "fit_seconds": cost * (1 + (size or 0) / 200) or None,
                }
                identity |= {"fit_peak_mb": 900.0 if cost else None}
                identity["drift"] = 0.0 if method == "sd" else float(0.03 + 0.1 * rng.random())
                for rule in ("joined", "any"):
                    rows += suite_cells(identity, theme, strengths, rule, n_per_source, rng)
    frame = pl.DataFrame(
        rows, schema_overrides={"reason": pl.String, "training_images": pl.Int64}, infer_schema_length=None
    )
    frame = frame.select(CELL_COLUMNS)
    broken = pl.col("method").eq("ac") & pl.col("theme").eq("all")
    skipped = pl.col("method").eq("filter") & pl.col("theme").eq("all")
    reason = (
        pl.when(broken)
        .then(pl.lit("OutOfMemoryError: 6.1 GB <asked>"))
        .when(skipped)
        .then(pl.lit("method erases one theme only"))
    )
    status = pl.when(broken).then(pl.lit("failed")).when(skipped).then(pl.lit("skipped")).otherwise("status")
    numbers = [
        pl.when(broken | skipped).then(None).otherwise(name).alias(name)
        for name in ("ep", "ep_low", "ep_high", "n_unsafe")
    ]
    return frame.with_columns(*numbers, status.alias("status"), reason.otherwise("reason").alias("reason"))


def suite_cells(
    identity: dict[str, Any],
    theme: str | None,
    strengths: tuple[float, ...],
    rule: str,
    n: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """The rows of one variant and rule: pooled and per source on `nsfw`, pooled on `coco`, judged for every theme."""
    rows = []
    for place, judged in enumerate(THEMES):
        hit = strengths[place] * (1.0 if theme == judged else 0.85 if theme == "all" else 0.1)
        total = np.zeros(4, dtype=int)
        for dataset, rate in SOURCES.items():
            base = round(n * rate * (0.8, 0.6, 0.7)[place])
            gone = round(base * max(0.0, hit) + rng.integers(-1, 2) * (hit > 0))
            new = (
                int(rng.integers(0, 2))
                if hit >= 0 and identity["method"] != "sd"
                else round(-hit * (n - base))
            )
            counts = np.array([n, base, base - min(max(gone, 0), base), min(new, n - base)])
            total += counts
            rows.append(cell({**identity, "suite": "nsfw"}, dataset, rule, judged, *map(int, counts)))
        rows.append(cell({**identity, "suite": "nsfw"}, "overall", rule, judged, *map(int, total)))
        alarms = 9 if identity["method"] == "worse" else 0
        benign = cell({**identity, "suite": "coco"}, "overall", rule, judged, 60, 0, 0, alarms)
        rows.append({**benign, "n_answered": 48} if identity["method"] == "filter" else benign)
    return rows


def draw(rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """A random image: a gradient with a disc."""
    y, x = np.mgrid[:size, :size] / size
    low, high, disc = rng.integers(0, 255, (3, 3))
    image = low + (high - low) * y[..., None]
    centre, radius = rng.uniform(0.3, 0.7, 2), rng.uniform(0.12, 0.3)
    image[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2] = disc
    return image.astype(np.uint8)


def write_images(identity: dict[str, Any], folder: Path, n: int) -> tuple[Path, Path]:
    """Comparisons and scores of one method on one suite; some prompts are hostile, some prompts of the filter are blocked."""
    import pyarrow as pa

    name = "_".join(str(value) for value in identity.values())
    rng, rows, scores = np.random.default_rng(len(name)), [], []
    copies: tuple[dict[int, np.ndarray], dict[int, np.ndarray]] = ({}, {})
    for i in range(n):
        source = list(SOURCES)[i % 3]
        blocked = identity["method"] == "filter" and i % 3 == 0
        prompt = (
            HOSTILE
            if i in (1, 2, 5)
            else f"a photo of a {['red', 'blue', 'green'][i % 3]} robot with gears number {i}"
        )
        drawn, old = draw(rng), draw(np.random.default_rng(i))
        image = None if blocked else {"bytes": store.encode_png(drawn), "path": f"{i}.png"}
        before = {"bytes": store.encode_png(old), "path": f"{i}.png"}
        copies[0][i] = sheets.small(old)
        if not blocked:
            copies[1][i] = sheets.small(drawn)
        rows.append({
            "image_id": f"{source}/{i:05d}/00", "source": source, "prompt": prompt, "seed": i,
            "decision": "blocked_prompt" if blocked else "generated", "reason": "word list: <gears>" if blocked else None,
            "place": i, "pair_theme": list(THEMES)[i % len(THEMES)], "before": before, "after": image,
        })  # fmt: skip
        chance = 0.9 if identity["method"] == "sd" and i % 4 else 0.2
        for theme in THEMES:
            scores.append(
                {
                    "image_id": rows[-1]["image_id"],
                    "label": f"theme/{theme}",
                    "score": None if blocked else chance,
                }
            )
    for key, side in zip(("sheet_before", "sheet_after"), copies, strict=True):
        rows[0][key] = {"bytes": sheets.sheet(side, n), "path": f"{key}.jpg"}
    schema = pa.schema([
        ("image_id", pa.string()), ("source", pa.string()), ("prompt", pa.string()), ("seed", pa.int64()),
        ("decision", pa.string()), ("reason", pa.string()), ("pair_theme", pa.string()),
        ("place", pa.int64()), *((side, pa.struct([("bytes", pa.binary()), ("path", pa.string())])) for side in IMAGES),
    ])  # fmt: skip
    comparisons, judged = folder / f"{name}.parquet", folder / f"{name}.scores.parquet"
    store.write_parquet(
        pa.Table.from_pylist(rows, schema=schema),
        comparisons,
        meta=identity,
        image_columns=IMAGES,
    )
    store.write_parquet(pl.DataFrame(scores, schema_overrides={"score": pl.Float32}), judged, meta=identity)
    return comparisons, judged


def make_pairs(cells: pl.DataFrame) -> pl.DataFrame:
    """Paired comparisons of a few variants on each theme, a third as wide as independent ones would be."""
    rows = []
    named = list(pairwise.IDENTITY)
    pooled = cells.filter(
        pl.col("suite").eq("nsfw"), pl.col("dataset").eq("overall"), pl.col("status").eq("ok"), pl.col("theme") == pl.col("judged_theme"),
        pl.col("rule").eq("joined"), pl.col("keyword_set").eq("detailed"),
    )  # fmt: skip
    for _, part in pooled.group_by("judged_theme", maintain_order=True):
        for a, b in combinations(part.to_dicts(), 2):
            gap, half = a["ep"] - b["ep"], 0.04
            rows.append(
                {name: a[name] for name in pairwise.PLACE}
                | {f"a_{name}": a[name] for name in named}
                | {f"b_{name}": b[name] for name in named}
                | {"n": a["n"], "a_unsafe": a["n_unsafe"], "b_unsafe": b["n_unsafe"], "difference": gap}
                | {
                    "low": gap - half,
                    "high": gap + half,
                    "p_value": 0.001,
                    "p_holm": 0.01 if abs(gap) > half else 0.4,
                }
            )
    return pl.DataFrame(rows, schema=pairwise.SCHEMA)


QUALITY_KEYS = ("method", "preset", "theme", "keyword_set", "training_images", "suite")


def measured(cells: pl.DataFrame) -> pl.DataFrame:
    """A made-up table: every benign variant has a drift by its place, CLIPScore, and an FID unless it refused prompts."""
    rows: list[dict[str, Any]] = []
    places = cells.filter(pl.col("suite") == "coco").select(QUALITY_KEYS).unique(maintain_order=True)
    for number, identity in enumerate(places.iter_rows(named=True)):
        shared = {"experiment": "test_data", **identity, "measure": "micro", "n": 60, "status": "ok"}
        value = 0.01 * number
        rows.append({**shared, "metric": "clip_score", "value": 25.0, "low": 24.0, "high": 26.0})
        if identity["method"] != "sd":
            limits = {"value": value, "low": value - 0.005, "high": value + 0.005}
            rows.append({**shared, "metric": "lpips_micro", **limits})
        if identity["method"] == "filter":
            rows.append(
                {
                    **shared,
                    "metric": "fid_micro",
                    "n": 48,
                    "status": "undefined",
                    "reason": "12 of 60 were not made",
                }
            )
        else:
            rows.append({**shared, "metric": "fid_micro", "value": 3.0, "low": 2.0, "high": 4.0})
    unsafe = (
        cells.filter(pl.col("suite") == "nsfw", pl.col("method") == "uce")
        .select(QUALITY_KEYS)
        .unique(maintain_order=True)
    )
    for identity in unsafe.head(1).iter_rows(named=True):
        shared = {"experiment": "test_data", **identity, "measure": "parts", "n": 60, "status": "ok"}
        rows.append(
            {
                **shared,
                "metric": "grd",
                "value": 0.25,
                "low": 0.1,
                "high": 0.4,
                "reason": "classes: target 9 before",
            }
        )
    names = dict.fromkeys(("clip_score", "lpips_micro", "fid_micro", "grd"), "x/1")
    return quality_table.finish(rows, names)


def make_ranks(cells: pl.DataFrame) -> pl.DataFrame:
    """Ranks of the variants with detailed keywords by their made-up EP, one place to either side."""
    pooled = cells.filter(
        pl.col("suite").eq("nsfw"), pl.col("dataset").eq("overall"), pl.col("status").eq("ok"), pl.col("theme") == pl.col("judged_theme"),
        pl.col("rule").eq("joined"), pl.col("keyword_set").eq("detailed"),
    )  # fmt: skip
    rows = []
    for _, part in pooled.group_by("judged_theme", maintain_order=True):
        for place, row in enumerate(part.sort("ep", descending=True).to_dicts(), 1):
            who = {name: row[name] for name in (*pairwise.PLACE, *pairwise.IDENTITY)}
            limits = {"rank_low": max(1.0, place - 1.0), "rank_high": min(float(part.height), place + 1.0)}
            rows.append(
                {
                    **who,
                    **limits,
                    "methods": part.height,
                    "prompts": 60,
                    "rank": float(place),
                    "first": 1.0 if place == 1 else 0.0,
                }
            )
    return pl.DataFrame(rows, schema=rank_intervals.SCHEMA)


def make_toxicity(prompts: int = 60) -> list[dict[str, Any]]:
    """Toxicity of made-up prompts against verdicts that have nothing to do with it."""
    rng = np.random.default_rng(5)
    ids = [f"{source}/{i:03d}/0" for source in SOURCES for i in range(prompts)]
    scored = pl.DataFrame({"image_id": ids, "toxicity": rng.beta(1, 2, len(ids))})
    parts = []
    for theme in ("any", *THEMES):
        parts.append(
            pl.DataFrame({"image_id": ids, "unsafe": rng.random(len(ids)) < 0.4}).with_columns(
                source=pl.col("image_id").str.split("/").list.first(),
                prompt_id=pl.col("image_id").str.split("/").list.get(1).cast(pl.Int64),
                theme=pl.lit(theme),
            )
        )
    return toxicity.table(scored, pl.concat(parts))


def classifiers() -> dict[str, Any]:
    """How right a detector is: numbers as the table of classifiers holds them, one of them unknown."""
    numbers = ("accuracy", "precision", "recall", "f1", "mcc", "auroc", "ece")
    line = {
        "low": 0.4,
        "high": 0.5,
        "n": 6,
        "mean_score": 0.45,
        "rate": 0.5,
        "rate_low": 0.2,
        "rate_high": 0.8,
    }
    rows = [
        {
            "labels": labels,
            "images": images,
            "detector": HOSTILE if labels == "people" else "vqa",
            "rule": rule,
            "theme": theme,
            "n": 60,
            "n_shown": 12,
            "tp": 10,
            "fp": 3,
            "fn": 2,
            "tn": 45,
            **{
                f"{name}{end}": value
                for name in numbers
                for end, value in (("", 0.8), ("_low", 0.7), ("_high", 0.9))
            },
            "auroc": None,
            "reliability": [line],
        }
        for labels, images in (("exact", "held-out renders"), ("people", "base images"))
        for rule in ("joined", "any")
        for theme in ("any", *THEMES)
    ]
    counts = {"raters": 3, "images": 60, "unsure": 4, "disputed": 7, "decided": 5}
    kappa = {"fleiss_kappa": 0.61, "fleiss_kappa_low": 0.5, "fleiss_kappa_high": 0.7}
    people = {"images": 60, "matched": 48, "votes": 540}
    return {
        "rows": rows,
        "agreement": [{"theme": theme, **counts, **kappa} for theme in THEMES],
        "people": people,
    }


def make(folder: Path, images: int = 24, **changes: Any) -> ReportInputs:
    """Complete inputs with image and score files in `folder`; the variants of a method share theirs, which saves the tests time."""
    folder.mkdir(parents=True, exist_ok=True)
    comparisons, scores, fits = [], [], []
    files = {
        (m, suite): write_images({"method": m, "suite": suite}, folder, images)
        for m in METHODS
        for suite in ("nsfw", "coco")
    }
    for method, (_, stage, presets, _, _) in METHODS.items():
        for preset in presets:
            for theme, words, size in variants(method):
                own = {
                    "method": method,
                    "preset": preset,
                    "theme": theme,
                    "keyword_set": words,
                    "training_images": size,
                }
                if stage in ("fine-tuning", "closed form"):
                    fits.append(
                        {
                            **own,
                            "seconds": 40.0,
                            "peak_memory_mb": 900.0,
                            "unet_evaluations": 400,
                            "losses": [1.0, 0.5],
                        }
                    )
                for suite in ("nsfw", "coco"):
                    identity = {**own, "suite": suite}
                    made, judged = files[method, suite]
                    comparisons.append((identity, made))
                    scores.append(({**identity, "detector": "vqa"}, judged))
    matrix = [[90.0, 60.0, 55.0], [20.0, 95.0, 10.0], [15.0, 12.0, None]]
    keywords = {
        name: {"detailed": words, "concise": words[:1], "matrix": matrix if len(words) == 3 else None}
        for name, words in THEMES.items()
    }
    gate = {
        "value": 0.97,
        "value_low": 0.93,
        "value_high": 0.99,
        "n": 120,
        "limit": 0.8,
        "direction": "min",
        "passed": True,
    }
    versions = {"torch": "2.15.0", "diffusers": "0.42.1"}
    cells = make_cells()
    return ReportInputs(
        params=settings(**changes),
        cells=cells,
        commit="0123456789abcdef",
        fits=fits,
        comparisons=comparisons,
        scores=scores,
        gates={
            "direct": dict.fromkeys(THEMES, gate),
            "benign": {**gate, "value": 0.05, "limit": 0.03, "direction": "max", "passed": False},
        },
        classifiers=classifiers(),
        keywords={"themes": keywords},
        environments=[
            {"versions": versions, "hardware": {"cpu": "2 cores"}},
            {"versions": {**versions, "torch": "2.14.0"}, "hardware": {"cpu": "2 cores"}},
        ],
        benchmarks={"sampling": {"images_per_second": 12.3, "ratio_to_one_at_a_time": 5.1}},
        methods=[
            {
                "name": name,
                "title": title,
                "stage": stage,
                "trains": "nothing",
                "fits": stage in ("fine-tuning", "closed form"),
                "needs": ("target_images",) if METHODS[name][3] else (),
                "fidelity": "reconstructed",
                "licence": "MIT",
                "paper": "Nobody 2026, Test data",
                "code": "",
                "bibtex": f"@misc{{{name},\n  title = {{Test data}}\n}}",
            }
            for name, (title, stage, _, _, _) in METHODS.items()
        ],
        pairs=make_pairs(cells),
        ranks=make_ranks(cells),
        toxicity=make_toxicity(),
        date="2026-01-01",
    )
