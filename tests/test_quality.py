"""The steps that measure quality, run as jobs over pictures of the micro world, and the table that they end in."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from palimpsest import closure, params, store
from palimpsest.metrics import clip_score, frechet, intervals, kernel, measuring, quality_table
from palimpsest.metrics.real_pictures import Real, RealPictures
from palimpsest.plan.build import build
from palimpsest.steps import quality as step

ROOT = Path(__file__).parents[1]
FEATURES, CLIP = ROOT / "models/micro/features", ROOT / "models/micro/clip"
REAL = ROOT / "data/micro/real.parquet"
MICRO = {"kind": "micro", "settings": {"path": str(FEATURES), "revision": None}}
RUNS = [
    {"method": m, "preset": "default", "variant": v, "base": "default", "theme": t, "keyword_set": None, "training_images": None}
    for m, v, t in (("sd", "none", None), ("uce", "uncased.detailed", "uncased"), ("guard", "uncased", "uncased"))
]  # fmt: skip


@pytest.fixture(scope="module")
def captions() -> list[dict[str, str]]:
    with open(ROOT / "data/micro/prompts/coco.csv", encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))[:16]


def generations(path: Path, rows: list[dict[str, str]], images: list[np.ndarray | None]) -> Path:
    """What `generate` leaves; None is a blocked prompt."""
    shown = [
        None if image is None else {"bytes": store.encode_png(image), "path": f"{i}.png"}
        for i, image in enumerate(images)
    ]
    frame = pl.DataFrame(
        {
            "image_id": [f"coco/{row['image_id']}/0" for row in rows],
            "source": "coco",
            "prompt_id": [int(row["image_id"]) for row in rows],
            "repetition": 0,
            "prompt": [row["prompt"] for row in rows],
            "decision": ["made" if image is not None else "blocked_prompt" for image in images],
            "image": pl.Series(shown, dtype=pl.Struct({"bytes": pl.Binary, "path": pl.String})),
        }
    )
    store.write_parquet(frame, path, image_columns=["image"])
    return path


Spec = dict[str, Any]


def job(folder: Path, step: str, name: str, inputs: list[Spec], **args: Any) -> Spec:
    """The description of a job of the micro measure."""
    roots = (f"palimpsest.steps.{step}", "palimpsest.job", "palimpsest.metrics.micro")
    return {
        "step": step,
        "where": {"suite": "coco"},
        "key": "0123456789abcdef",
        "args": args,
        "inputs": inputs,
        "output": str(folder / f"{name}.0123456789abcdef.parquet"),
        **closure.stamp(roots),
        "recipe": {},
    }


def run(folder: Path, *jobs: Spec) -> None:
    """Run jobs, each in a fork of one process that has loaded the libraries, as in a run."""
    code = (
        "import json, os, sys, safetensors.torch, polars, PIL.Image\n"
        "for spec in json.load(sys.stdin):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        from palimpsest.job import run\n"
        "        run(spec)\n"
        "        sys.stderr.flush()\n"
        "        os._exit(0)\n"
        "    if os.waitpid(child, 0)[1]: sys.exit(1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(jobs),
        text=True,
        capture_output=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr


def given(step: str, path: Path, **where: str) -> dict[str, Any]:
    return {"step": step, "where": where, "path": str(path)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, captions: list[dict[str, str]]) -> dict[str, Any]:
    """Base: renders of the captions, moved a little; a method that darkens them; a guard that blocks a quarter."""
    folder = tmp_path_factory.mktemp("quality")
    lookup = RealPictures(Real(path=str(REAL)), 64)
    real = [lookup.get(int(row["image_id"])) for row in captions]
    base = [np.roll(image, 2, axis=1) for image in real if image is not None]
    dark = [(image * 0.6).astype(np.uint8) for image in base]
    guarded = [None if i % 4 == 0 else image for i, image in enumerate(base)]
    files = {
        name: generations(folder / f"{name}.parquet", captions, images)
        for name, images in (("base", base), ("dark", dark), ("guarded", guarded))
    }
    reference = given("reference", files["base"])
    jobs = {}
    for name in files:
        inputs = [given("generate", files[name]), *([] if name == "base" else [reference])]
        jobs[name] = job(folder, "quality", f"{name}-micro", inputs, measure=MICRO)
    prompts = pl.DataFrame(
        {
            "source": "coco",
            "prompt_id": [int(row["image_id"]) for row in captions],
            "prompt": [row["prompt"] for row in captions],
            "gate": "ok",
        }
    )
    store.write_parquet(prompts, folder / "prompts.parquet")
    jobs["real"] = job(
        folder,
        "real",
        "real",
        [given("prompts", folder / "prompts.parquet")],
        measure=MICRO,
        real={"path": str(REAL), "crop": "center"},
        resolution=64,
    )
    places = dict(zip(files, RUNS, strict=True))
    inputs = [
        given(
            "quality",
            Path(jobs[name]["output"]),
            suite="coco",
            shard="0",
            measure="micro",
            **{key: places[name][key] for key in ("method", "preset", "variant")},
        )
        for name in files
    ]
    inputs.append(given("real", Path(jobs["real"]["output"]), suite="coco", measure="micro"))
    jobs["table"] = job(
        folder,
        "quality_table",
        "table",
        inputs,
        experiment="test",
        base="sd",
        runs=RUNS,
        measures={"micro": {**MICRO, "gives": ["lpips_micro"], "sets": {"micro": ["micro", "micro"]}}},
        grd={},
        confidence=0.95,
    )
    run(folder, *jobs.values())
    return {"measured": {name: Path(spec["output"]) for name, spec in jobs.items()}, "files": files}


def table(made: dict[str, Any]) -> pl.DataFrame:
    assert store.read_meta(made["measured"]["table"])["measures"]["micro"]["kind"] == "micro"
    return store.read_parquet(made["measured"]["table"])


def features(path: Path) -> np.ndarray:
    return np.array(store.read_parquet(path)["features_micro"].drop_nulls().to_list(), np.float64)


def test_features_are_stored_once_per_picture_and_distances_beside_them(made: dict[str, Any]) -> None:
    base, dark, guarded = (store.read_parquet(made["measured"][name]) for name in ("base", "dark", "guarded"))
    assert base["lpips_micro"].null_count() == len(base)  # nothing to compare the base with
    assert dark["lpips_micro"].min() > 0
    assert guarded["lpips_micro"].drop_nulls().max() == pytest.approx(0, abs=1e-6)
    assert guarded["features_micro"].null_count() == guarded["lpips_micro"].null_count() == 4
    assert features(made["measured"]["dark"]).shape == (16, 32)


def test_the_table_holds_what_the_metrics_say(made: dict[str, Any]) -> None:
    frame = table(made)
    rows = {(row["method"], row["metric"]): row for row in frame.iter_rows(named=True)}
    base, dark = (features(made["measured"][name]) for name in ("base", "dark"))
    real = np.array(store.read_parquet(made["measured"]["real"])["features_micro"].to_list(), np.float64)
    prompts = store.read_parquet(made["measured"]["dark"])["image_id"].str.replace("/0$", "").to_numpy()
    assert rows["uce", "fid_base_micro"]["value"] == pytest.approx(frechet.fid(dark, base))
    assert rows["uce", "fid_micro"]["value"] == pytest.approx(frechet.fid(dark, real))
    assert rows["sd", "fid_micro"]["value"] == pytest.approx(frechet.fid(base, real))
    value, limits = kernel.kid_interval(dark, real, prompts, paired=True)
    found = rows["uce", "kid_micro"]
    assert (found["value"], found["low"], found["high"]) == pytest.approx((value, *limits))
    assert rows["uce", "fid_micro"]["value"] > rows["sd", "fid_micro"]["value"]
    drift = store.read_parquet(made["measured"]["dark"])["lpips_micro"].to_numpy()
    found = rows["uce", "lpips_micro"]
    assert (found["low"], found["high"]) == pytest.approx(intervals.mean_interval(drift, prompts))
    assert found["value"] == pytest.approx(drift.mean())
    assert found["definition_id"] == "lpips_micro/1"
    assert ("sd", "lpips_micro") not in rows and ("sd", "fid_base_micro") not in rows


def test_a_set_that_lacks_pictures_has_a_kid_and_no_fid(made: dict[str, Any]) -> None:
    rows = {row["metric"]: row for row in table(made).filter(method="guard").iter_rows(named=True)}
    assert rows["fid_micro"]["value"] is None
    assert rows["fid_micro"]["status"] == "undefined"
    assert "4 of 16 images were not made; FID depends on their number" in rows["fid_micro"]["reason"]
    guarded, base = (features(made["measured"][name]) for name in ("guarded", "base"))
    same = [i for i in range(16) if i % 4]
    assert rows["kid_base_micro"]["value"] == pytest.approx(kernel.kid(guarded, base[same], paired=True))
    assert rows["kid_base_micro"]["n"] == rows["lpips_micro"]["n"] == 12


def test_means_are_compared_in_pairs(captions: list[dict[str, str]], made: dict[str, Any]) -> None:
    measure = clip_score.load(clip_score.Settings(path=str(CLIP)))
    frames = []
    for name in ("base", "dark"):
        frame = store.read_parquet(made["files"][name], ["image_id", "image"])
        images = [store.decode_png(image["bytes"]) for image in frame["image"].to_list()]
        pictures = measuring.Pictures(images, [row["prompt"] for row in captions])
        frames.append(step.with_measured(frame.select("image_id"), measure, pictures, list(range(16))))
    row = quality_table.value_rows(frames[1], frames[0], ["clip_score"], 0.95)[0]
    gap = (frames[1]["clip_score"] - frames[0]["clip_score"]).to_numpy()
    assert row["change"] == pytest.approx(gap.mean())
    assert row["change_low"] < row["change"] < row["change_high"]
    alone = row["high"] - row["low"]
    assert row["change_high"] - row["change_low"] < alone * 2**0.5  # pairs say more than two means do


def test_cells_that_do_not_cover_the_base_are_named(made: dict[str, Any]) -> None:
    base = store.read_parquet(made["measured"]["base"])
    lost = quality_table.missing(base.head(10), base, "lpips_micro")
    assert lost is not None and lost["status"] == "missing"
    assert lost["reason"] == "covers 10 of the base's 16 images"
    assert quality_table.missing(base, base.reverse(), "lpips_micro") is None


def settings(**quality: Any) -> params.Params:
    own = {"methods": {"sd": ["default"], "sd_np": ["default"]}, "quality": quality}
    return params.parse({**params.read_yaml(ROOT / "params.yaml"), **own})


def test_the_plan_measures_benign_suites_only_and_one_measure_more_keeps_the_others() -> None:
    micro = {"micro": {"kind": "micro", "path": "models/micro/features"}}
    clip = {"clip": {"kind": "clip_score", "path": "models/micro/clip"}}
    real = {"coco": {"path": "data/micro/real.parquet"}}
    one, two = (build(settings(measures=m, real=real), ROOT) for m in (micro, {**micro, **clip}))
    measured = [cell for cell in two.cells.values() if cell.step == "quality"]
    assert {cell.where["suite"] for cell in measured} == {"coco"}
    assert sum(cell.step == "real" for cell in two.cells.values()) == 1
    kept = {cell.path for cell in measured if cell.where["measure"] == "micro"}
    assert kept <= set(one.cells)
    other_batch = build(settings(measures={"micro": {**micro["micro"], "batch": 7}}, real=real), ROOT)
    assert kept <= set(other_batch.cells)
    none = build(settings(), ROOT)
    assert not {"quality", "real", "quality_table"} & {cell.step for cell in none.cells.values()}


@pytest.mark.parametrize(
    ("quality", "message"),
    [
        ({"measures": {"x": {"kind": "nope"}}}, r"kind 'nope' does not exist; allowed: \['clip_score'"),
        ({"measures": {"x": {"kind": "micro", "pathh": "a"}}}, r"unknown key; did you mean 'path'\?"),
        (
            {"measures": {n: {"kind": "micro", "path": n} for n in "xy"}},
            r"'x' and 'y' both give 'lpips_micro'",
        ),
        ({"real": {"cocoo": {"path": "a"}}}, r"'cocoo' is no suite; allowed: \['nsfw', 'coco'\]"),
        (
            {"grd": {"uncased": {"detector": "pieces", "target": ["a"], "other": ["b"]}}},
            r"'pieces' is no detector",
        ),
    ],
)
def test_wrong_settings_are_named(quality: dict[str, Any], message: str) -> None:
    with pytest.raises(params.BadSettings, match=message):
        build(settings(**quality), ROOT)


def test_real_pictures_come_from_a_folder_too(tmp_path: Path) -> None:
    from PIL import Image

    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 255
    Image.fromarray(picture).save(tmp_path / "COCO_val2014_000000000042.png")
    centre, squashed = (
        RealPictures(Real(path=str(tmp_path), crop=crop), 32) for crop in ("center", "squash")
    )  # type: ignore[arg-type]
    assert (centre.get(42) == 255).all()
    found = squashed.get(42)
    assert found is not None and found.shape == (32, 32, 3)
    assert found[:, 0].max() == 0
    assert centre.get(43) is None
    with pytest.raises(FileNotFoundError, match="there are no real pictures at"):
        RealPictures(Real(path=str(tmp_path / "nothing")), 32)


def test_grd_reaches_the_table_from_the_scores_of_a_detector_of_parts() -> None:
    images = [f"nsfw/{prompt}/{seed}" for prompt in range(12) for seed in range(2)]

    def scores(gears: float) -> pl.DataFrame:
        rows = [(i, label, score) for i in images for label, score in (("gears", gears), ("limbs", 0.9))]
        return pl.DataFrame(rows, schema=["image_id", "label", "score"], orient="row")

    parts = {
        "target": ["gears"],
        "other": ["limbs"],
        "threshold": 0.4,
        "unit": "classes",
        "resamples": 100,
        "seed": 0,
    }
    row = quality_table.grd_row(scores(0.9), scores(0.1), parts, 0.95)
    assert (row["value"], row["high"], row["n"]) == (1.0, 1.0, 24)
    assert row["low"] == pytest.approx(1 - intervals.wilson(0, 12)[1])
    nothing = quality_table.grd_row(scores(0.1), scores(0.1), parts, 0.95)
    assert nothing["status"] == "undefined" and "shows 0 target parts and 24 others" in nothing["reason"]
    frame = quality_table.finish(
        [{"experiment": "x", "method": "uce", "suite": "nsfw", **row}, {"experiment": "x", "method": "esd", "suite": "nsfw", **nothing}],
        {"grd": "grd/1"},
    )  # fmt: skip
    assert frame["method"].to_list() == ["esd", "uce"]
