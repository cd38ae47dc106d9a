"""What the report adds from stored scores: pairs of methods and toxicity, from score files as the pipeline writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from palimpsest import closure, environment, params, store
from palimpsest.job import Input, Job
from palimpsest.metrics import ep, paired
from palimpsest.reports.conclusions import own, registry
from palimpsest.steps import paired as steps

sys.path.insert(0, str(Path(__file__).parent / "reports"))

import fake_inputs

IDS = [f"nsfw/{source}/{p:02d}/{r}" for source in ("a", "b") for p in range(20) for r in range(2)]
THEMES = list(fake_inputs.THEMES)
SETTING = fake_inputs.settings(statistics={"resamples": 200})


def scores(seed: int, chance: float, themes: list[str]) -> pl.DataFrame:
    """Long scores of every label that both rules need; one prompt of the erased model is blocked."""
    rng, rows = np.random.default_rng(seed), []
    for image in IDS:
        source, prompt, repetition = image.split("/")[1:]
        blocked = seed > 0 and (source, prompt) == ("a", "03")
        for theme in themes:
            for label in (f"theme/{theme}", *(f"keyword/{word}" for word in fake_inputs.THEMES[theme])):
                score = None if blocked else float(rng.random() < chance)
                rows.append(
                    (
                        image,
                        source,
                        int(prompt),
                        int(repetition),
                        "blocked_prompt" if blocked else "made",
                        label,
                        score,
                    )
                )
    names = ["image_id", "source", "prompt_id", "repetition", "decision", "label", "score"]
    return pl.DataFrame(rows, schema=names, orient="row", schema_overrides={"score": pl.Float32})


def run(method: str, theme: str, keyword_set: str = "detailed") -> dict[str, Any]:
    variant = "none" if theme == "none" else f"{theme}.{keyword_set}"
    return {
        "method": method, "preset": "default", "variant": variant, "theme": theme, "keyword_set": keyword_set, "training_images": 0,
        "base": "default",
    }  # fmt: skip


RUNS = [
    run("sd", "none"), run("x", "glitch"), run("y", "glitch"), run("x", "all"), run("y", "all"), run("filter", "all", "fixed"),
    run("z", "uncased"),
]  # fmt: skip


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder, inputs = tmp_path_factory.mktemp("scores"), []
    for place, one in enumerate(RUNS):
        judged = [one["theme"]] if one["theme"] in THEMES else THEMES
        path = folder / f"{place}.parquet"
        store.write_parquet(scores(place, 0.8 if one["method"] == "sd" else 0.1 * place, judged), path)
        where = {
            "method": one["method"],
            "preset": "default",
            "variant": one["variant"],
            "suite": "nsfw",
            "shard": "0",
            "detector": "vqa",
        }
        inputs.append(Input("score", where, path))
    prompts = pl.DataFrame({"image_id": IDS, "toxicity": np.linspace(0, 1, len(IDS))})
    store.write_parquet(prompts, folder / "prompts.parquet")
    inputs.append(Input("prompts", {"suite": "nsfw"}, folder / "prompts.parquet"))
    args = {"rules": SETTING.model_dump(mode="json")["rules"]}
    return Job("report", {}, "0" * 16, args, inputs, folder / "index.html", (), "", (), "", {})


def test_cells_that_erase_alike_are_compared_and_no_others(job: Job) -> None:
    found = steps.compared(job, SETTING, RUNS)[0]
    joined = found.filter(pl.col("rule") == "joined")
    sets = {
        theme: {
            (r["a_method"], r["a_theme"], r["b_method"], r["b_theme"]) for r in part.iter_rows(named=True)
        }
        for (theme,), part in joined.group_by("judged_theme")
    }
    assert sets["glitch"] == {
        ("x", "glitch", "y", "glitch"), ("x", "glitch", "filter", "all"), ("y", "glitch", "filter", "all"),
        ("x", "all", "y", "all"), ("x", "all", "filter", "all"), ("y", "all", "filter", "all"),
    }  # fmt: skip
    assert sets["any"] == {
        ("x", "all", "y", "all"),
        ("x", "all", "filter", "all"),
        ("y", "all", "filter", "all"),
    }
    assert ("filter", "all", "z", "uncased") in sets["uncased"]
    assert set(found["rule"]) == {"joined", "any"}


def test_numbers_of_a_pair_are_those_counted_by_hand(job: Job) -> None:
    verdicts = {
        one["method"]: dict(
            pl.read_parquet(item.path)
            .filter(pl.col("label") == "theme/glitch")
            .select("image_id", pl.col("score") > 0.5)
            .iter_rows()
        )
        for one, item in zip(RUNS, job.of("score"), strict=True)
        if one["theme"] in ("none", "glitch")
    }
    base, x, y = (np.array([bool(verdicts[name][image]) for image in IDS]) for name in ("sd", "x", "y"))
    pair = (
        pl.col("rule").eq("joined")
        & pl.col("judged_theme").eq("glitch")
        & pl.col("a_theme").eq("glitch")
        & pl.col("b_theme").eq("glitch")
    )
    [row] = steps.compared(job, SETTING, RUNS)[0].filter(pair).to_dicts()
    assert (row["n"], row["a_unsafe"], row["b_unsafe"]) == (len(IDS), x.sum(), y.sum())
    assert row["difference"] == pytest.approx(ep.count(base, x).ep - ep.count(base, y).ep)
    assert row["low"] <= row["difference"] <= row["high"]
    alone = paired.mcnemar_exact(int((x & ~y).sum()), int((y & ~x).sum()))
    assert row["p_value"] == pytest.approx(
        alone, rel=0.6
    )  # two images a prompt: near McNemar's, not the same
    assert row["p_holm"] >= row["p_value"]


def test_toxicity_is_of_the_base_and_all_themes(job: Job) -> None:
    rows = steps.toxicities(job, SETTING)
    assert {r["theme"] for r in rows} == {*THEMES, "any"}
    whole = {r["theme"]: r for r in rows if r["dataset"] == "overall" and r["bin"] == "all"}
    base = pl.read_parquet(job.of("score")[0].path)
    unsafe = base.filter(pl.col("label").str.starts_with("theme/"), pl.col("score") > 0.5)
    assert whole["any"]["n_unsafe"] == unsafe["image_id"].n_unique() and whole["any"]["n"] == len(IDS)
    assert whole["glitch"]["n_unsafe"] == unsafe.filter(pl.col("label") == "theme/glitch").height


def test_without_prompt_tables_there_is_no_toxicity(job: Job) -> None:
    bare = Job(**{**vars(job), "inputs": job.of("score")})
    assert steps.toxicities(bare, SETTING) == []
    benign: params.Params = fake_inputs.settings(suites={"nsfw": {"kind": "benign"}})
    assert steps.compared(job, benign, RUNS)[0].is_empty() and steps.toxicities(job, benign) == []


def made(
    folder: Path, step: str, inputs: list[tuple[str, dict[str, str], Path]], args: dict[str, Any], name: str
) -> Path:
    """Run a step as the pipeline does, in a process of its own; the folder of what it wrote."""
    output = folder / step / name
    spec = {
        "step": step, "where": {"experiment": "test_data"}, "key": "0123456789abcdef", "args": args, "output": str(output),
        "inputs": [{"step": kind, "where": where, "path": str(path)} for kind, where, path in inputs],
        "beside": {"costs": str(folder / step / "costs.parquet")} if step == "aggregate" else {},
        **closure.stamp((f"palimpsest.steps.{step}", "palimpsest.job", "palimpsest.methods.sd")), "recipe": {},
    }  # fmt: skip
    output.parent.parent.mkdir(parents=True, exist_ok=True)
    code = "import json, sys; from palimpsest.job import run; run(json.load(sys.stdin))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(spec),
        text=True,
        capture_output=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return output.parent


def test_the_report_step_leaves_a_folder_that_conclude_reads(job: Job, tmp_path: Path) -> None:
    cost = {
        "images": 80,
        "seconds": 8.0,
        "sampling_seconds": 7.0,
        "peak_memory_mb": 900.0,
        "environment": environment.describe(),
    }
    inputs = []
    for item in job.of("score"):
        path = tmp_path / item.path.name
        store.write_parquet(store.read_parquet(item.path), path, {"generation": cost})
        inputs.append(("score", dict(item.where), path))
    setting = fake_inputs.settings(statistics={"resamples": 200}).model_dump(mode="json")
    (tmp_path / "aggregate").mkdir()
    args = {
        "experiment": "test_data", "seed": 0, "runs": RUNS, "suites": {"nsfw": "unsafe"}, "rules": setting["rules"],
        "statistics": setting["statistics"], "themes": {name: theme["detailed"] for name, theme in setting["themes"].items()},
    }  # fmt: skip
    tables = made(tmp_path, "aggregate", inputs, args, "cells.parquet")
    store.write_json({"themes": {}}, tmp_path / "keywords.json")
    inputs += [
        ("aggregate", {}, tables / "cells.parquet"),
        ("costs", {}, tables / "costs.parquet"),
        ("keywords", {}, tmp_path / "keywords.json"),
        ("prompts", {"suite": "nsfw"}, job.of("prompts")[0].path),
    ]
    methods = [
        {"name": one, "module": "palimpsest.methods.sd", "title": one}
        for one in ("sd", "x", "y", "z", "filter")
    ]
    args = {"params": setting, "rules": setting["rules"], "methods": methods, "benchmarks": []}
    report = made(tmp_path, "report", inputs, args, "index.html")
    study = own.load(report)
    assert len(study.pairs) == steps.compared(job, SETTING, RUNS)[0].height > 0
    found = json.loads((report / "conclusions.json").read_text())
    assert json.loads(json.dumps(registry.conclusions(study))) == found
    assert (report / "figures" / "toxicity.png").is_file() and found["takeaways"]["prompts and judges"][0][
        "says"
    ]
    assert any(study.differ(a, b) for a in study.rows for b in study.rows if study.compared(a, b))


def test_ranks_are_those_of_the_methods_on_the_same_prompts(job: Job) -> None:
    pairs, ranks = steps.compared(job, SETTING, RUNS)
    assert (
        ranks.height
        and set(ranks["detector"]) == {SETTING.judge}
        and set(ranks["rule"]) == {next(iter(SETTING.rules))}
    )
    for (theme,), part in ranks.group_by("judged_theme"):
        assert part["methods"].unique().to_list() == [part.height], theme
        assert part["rank"].sum() == part.height * (part.height + 1) / 2
        assert (part["rank_low"] <= part["rank"]).all() and (part["rank"] <= part["rank_high"]).all()
        ahead = part.sort("rank")["method"].to_list()
        erased = "all" if theme == "any" else theme
        alike = [
            pl.col(f"{side}_theme").eq(erased) | pl.col(f"{side}_keyword_set").eq("fixed") for side in "ab"
        ]
        here = pairs.filter(pl.col("judged_theme") == theme, pl.col("rule") == ranks["rule"][0], *alike)
        for pair in here.iter_rows(named=True):
            a, b = pair["a_method"], pair["b_method"]
            if a in ahead and b in ahead and pair["difference"] > 0 and a != b:
                assert ahead.index(a) < ahead.index(b)
