"""Levels, guidance and comparisons of an experiment's own results, and of its report's folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import fake_inputs
import polars as pl
import pytest
from typer.testing import CliRunner

from palimpsest import params, reference, store
from palimpsest.cli import conclude
from palimpsest.cli.main import app
from palimpsest.metrics import pairwise
from palimpsest.reports import select, verdict_tables
from palimpsest.reports.conclusions import (
    comparison,
    erasure,
    guidance,
    levels,
    own,
    paper,
    preservation,
    prompts,
    registry,
)
from palimpsest.reports.conclusions.study import Pair, Study, pair_key
from palimpsest.reports.inputs import ReportInputs
from palimpsest.reports.intervals import Estimate

ROOT = Path(__file__).parents[2]
PARAMS = fake_inputs.settings()


def row(label: str, ep: float, theme: str = "glitch", half: float = 0.02, **other: Any) -> dict[str, Any]:
    """A row as `select.rows_of` gives it, of one theme or of all (judged for any)."""
    found = dict.fromkeys((*fake_inputs.CELL_COLUMNS, "drift_low", "drift_high"))
    found |= {
        "method": label, "preset": "default", "theme": theme, "judged_theme": "any" if theme == "all" else theme, "suite": "nsfw",
        "dataset": "overall", "detector": "vqa", "rule": "joined", "status": "ok", "n": 400, "n_answered": 400, "n_base_unsafe": 200,
        "n_unsafe": round(200 * (1 - ep)), "keyword_set": "detailed", "training_images": 0,
        "ep": ep, "ep_low": ep - half, "ep_high": ep + half,
        "label": label, "variant": "", "stage": "fine-tuning", "is_base": False, "anchor": f"row-{label}-{theme}",
        "family": label, "fits": True, "needs_images": False, "adversarial": False, "strength": None,
    }  # fmt: skip
    return {**found, **other}


def study(rows: list[dict[str, Any]], **other: Any) -> Study:
    return Study("test_data", other.pop("setting", PARAMS), rows, **other)


@pytest.mark.parametrize(
    ("better", "worse", "count", "level"),
    [
        (0, 12, 13, 1),
        (2, 10, 13, 1),
        (3, 9, 13, 2),
        (9, 3, 13, 2),
        (10, 2, 13, 3),
        (0, 2, 3, 1),
        (1, 1, 3, 2),
        (2, 0, 3, 3),
        (0, 0, 13, 2),
    ],
)
def test_levels_are_three_at_each_end(better: int, worse: int, count: int, level: int) -> None:
    assert levels.level_of(better, worse, count) == level


def test_a_level_that_the_intervals_leave_open_is_not_decided() -> None:
    clear = [row(f"m{i}", 0.9 - 0.1 * i) for i in range(8)]
    [found] = [one for one in levels.levels(study(clear)) if one.criterion == "erasure"]
    assert [s.level for s in found.standings] == [1, 1, 1, 2, 2, 3, 3, 3]
    assert all(s.decided and s.rank_range == (s.rank, s.rank) for s in found.standings)
    wide = [row(f"m{i}", 0.9 - 0.1 * i, half=0.08) for i in range(8)]
    [found] = [one for one in levels.levels(study(wide)) if one.criterion == "erasure"]
    assert [s.decided for s in found.standings] == [True, True, False, False, False, False, True, True]
    assert found.standings[2].rank_range == (2, 4)


def test_a_method_that_lacks_a_theme_is_not_ranked() -> None:
    rows = [row(f"m{i}", 0.5, theme) for i in range(3) for theme in ("glitch", "uncased")] + [
        row("half", 0.99, "glitch")
    ]
    found = levels.standings(levels.ERASURE, study(rows))
    assert {s.label for s in found.standings} == {"m0", "m1", "m2"}
    assert "half" in found.missing


def test_criteria_that_were_not_measured_say_so() -> None:
    found = {one.criterion: one for one in levels.levels(study([row("a", 0.9), row("b", 0.1)]))}
    assert not found["robustness"].standings and "not measured" in found["robustness"].missing
    assert found["erasure"].at(1) == ["a"]


ATTACK = {
    "nsfw": {"kind": "unsafe", "sources": {"i2p": {"format": "direct", "path": "x.csv"}}},
    "attack": {"kind": "unsafe", "theme": "glitch", "sources": {"a": {"format": "direct", "path": "x.csv"}}},
}


def test_guidance_names_methods_rivals_and_what_is_missing() -> None:
    setting = fake_inputs.settings(suites=ATTACK)
    rows = [
        row("free", 0.80, fits=False), row("frei", 0.79, fits=False), row("weak", 0.3, fits=False),
        row("fitted", 0.7), row("images", 0.9, needs_images=True),
    ]  # fmt: skip
    found = {one.scenario: one for one in guidance.guidance(study(rows, setting=setting))}
    assert (found["time-efficiency priority"].methods, found["time-efficiency priority"].rivals) == (
        ("free",),
        ("frei",),
    )
    assert found["data-scarce"].methods == ("free", "fitted")
    assert found["high-stakes"].missing == "no suite of adversarial prompts was run"
    assert "nothing can be said" in guidance.sentence(found["quality priority"])
    hit = [
        row("fitted", 0.95, suite="attack"),
        row("images", 0.81, suite="attack"),
        row("free", 0.99, suite="attack", fits=False),
    ]
    safe = guidance.high_stakes(study([*rows, *hit], setting=setting))
    assert (safe.methods, safe.rivals) == (("fitted", "images"), ("images",))
    [robust] = preservation.robust(study([*rows, *hit], setting=setting))
    assert robust.says["order"] == ["fitted", "images"] and robust.says["higher_without_fitting"] == ["free"]


def test_least_drift_speaks_where_no_quality_was_measured() -> None:
    rows = [row(m, 0.5, suite="coco", drift=d, ep_low=None) for m, d in (("a", 0.1), ("b", 0.3))]
    assert guidance.quality(study(rows)).methods == ("a",)


def test_a_paired_comparison_decides_where_two_intervals_cannot() -> None:
    a, b = row("a", 0.9, half=0.1), row("b", 0.85, half=0.1)
    [alone] = erasure.best_methods(study([a, b]))
    assert alone.level == "open" and alone.says["not_told_apart"] == ["b"]
    for p, level in ((0.001, "finding"), (0.2, "open")):
        pairs = {pair_key(b, a): Pair(Estimate(-0.05, -0.08, -0.02), p)}
        [found] = erasure.best_methods(study([a, b], pairs=pairs))
        assert found.level == level
        assert (found.evidence[2].low, found.evidence[2].high) == (0.02, 0.08)


def test_keyword_sets_and_training_sets_are_judged_by_the_same_threshold() -> None:
    words = [
        row(m, ep, keyword_set=k)
        for m, pair in (("a", (0.5, 0.58)), ("b", (0.5, 0.7)))
        for k, ep in zip(("concise", "detailed"), pair, strict=True)
    ]
    [found] = comparison.keywords_comparable(study(words))
    assert (found.says["comparable"], found.says["not"]) == (["a"], ["b"])
    sizes = [
        row(m, ep, training_images=n)
        for m, pair in (("a", (0.5, 0.45)), ("b", (0.2, 0.7)))
        for n, ep in zip((20, 200), pair, strict=True)
    ]
    [found] = comparison.data_scale(study(sizes))
    assert (found.says["stable"], found.says["sensitive"]) == (["a"], ["b"])
    assert comparison.data_scale(study(words)) == []


def test_a_trade_off_is_asserted_only_when_the_interval_excludes_zero() -> None:
    def rows(noise: float) -> list[dict[str, Any]]:
        erased = [row(f"m{i}", 0.9 - 0.05 * i, "all") for i in range(14)]
        benign = [
            row(
                f"m{i}",
                0.0,
                "all",
                suite="coco",
                drift=0.3 - 0.01 * i + noise * (i % 3),
                ep_low=None,
                ep_high=None,
            )
            for i in range(14)
        ]
        return [*erased, *benign]

    [clear] = preservation.trade_off(study(rows(0.0)))
    assert clear.level == "finding" and clear.says["sign"] == "negative"
    [unclear] = preservation.trade_off(study(rows(0.2)))
    assert unclear.level == "open" and "do not show a trade-off" in unclear.sentence


def toxic(correlation: float, low: float, high: float) -> list[dict[str, Any]]:
    line = {
        "dataset": "overall",
        "theme": "any",
        "n": 100,
        "n_prompts": 100,
        "n_unsafe": 40,
        "share": 0.4,
        "share_low": 0.3,
        "share_high": 0.5,
    }
    whole = {
        **line,
        "bin": "all",
        "correlation": correlation,
        "correlation_low": low,
        "correlation_high": high,
    }
    return [whole, {**line, "bin": "0 to 0.2", "correlation": None}]


@pytest.mark.parametrize(
    ("limits", "level", "weak"),
    [
        ((0.1, -0.1, 0.3), "finding", True),
        ((0.4, 0.2, 0.6), "open", False),
        ((0.8, 0.6, 0.9), "finding", False),
        ((-0.8, -0.9, -0.6), "finding", False),
    ],
)
def test_toxicity_is_weak_strong_or_undecided(
    limits: tuple[float, float, float], level: str, weak: bool
) -> None:
    [found] = prompts.toxicity(study([], toxicity=toxic(*limits)))
    assert (found.level, found.says["weak"]) == (level, weak)
    assert "40.0 % at 0 to 0.2" in found.sentence


def test_the_report_shows_levels_guidance_and_toxicity(report: Path) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    for name in ("levels", "guidance", "toxicity"):
        assert f'id="{name}-table"' in text
        assert (report / "tables" / f"{name}.csv").is_file()
    assert (report / "figures" / "toxicity.svg").is_file() and 'id="figure-toxicity"' in text
    assert "Prompts and judges</h3>" in text
    assert "beside-table" not in text


def test_the_folder_of_a_report_gives_the_same_conclusions_again(
    inputs: ReportInputs, report: Path, tmp_path: Path
) -> None:
    store.write_parquet(inputs.cells, tmp_path / own.CELLS)
    own.write_tables(inputs, tmp_path)
    again = registry.conclusions(own.load(tmp_path))
    assert json.loads(json.dumps(again)) == json.loads((report / "conclusions.json").read_text())
    assert {one["criterion"] for one in again["levels"]} == {
        c.id for c in levels.criteria(own.load(tmp_path))
    }
    assert not again["published"]


def test_commands(inputs: ReportInputs, tmp_path: Path) -> None:
    store.write_parquet(inputs.cells, tmp_path / own.CELLS)
    own.write_tables(inputs, tmp_path)
    run = CliRunner()
    said = run.invoke(app, ["conclude", str(tmp_path), "--words"])
    assert said.exit_code == 0 and "Erasure effectiveness: 1:" in said.output, said.output
    assert json.loads(run.invoke(app, ["conclude", str(ROOT / "data/reference")]).output)["published"] is True
    said = run.invoke(app, ["compare", "uce/compvis2023", "Negative prompt", "-r", str(tmp_path)])
    assert said.exit_code == 0 and "after Holm's correction" in said.output, said.output
    said = run.invoke(app, ["compare", "uce", "sd_np", "-r", str(tmp_path)])
    assert said.exit_code == 1 and "fits several" in said.output and "uce/diffusers2025" in said.output
    said = run.invoke(app, ["conclude", str(tmp_path / "nothing")])
    assert said.exit_code == 1 and "make report" in said.output


def test_a_comparison_pairs_variants_and_falls_back_to_the_first(inputs: ReportInputs) -> None:
    whole = own.study_of(inputs, select.rows_of(inputs))
    found = conclude.compared(whole, "uce/compvis2023", "esd/x_diffusers")
    themes = {(line["theme"], line["variant"]): line for line in found["erasure"]}
    line = themes["glitch", "glitch, detailed keywords"]
    assert line["paired"] and line["p_holm"] == 0.01 and line["told_apart"]
    assert line["difference"] == pytest.approx(line["a"]["ep"] - line["b"]["ep"])
    assert not themes["glitch", "glitch, concise keywords"]["paired"]
    mixed = conclude.compared(whole, "uce/compvis2023/glitch.detailed", "ac")
    assert {line["variant"] for line in mixed["erasure"]} == {
        "glitch, detailed keywords against glitch, 200 images"
    }
    assert found["benign"][0]["name"] == "drift" and found["cost"]


def published_experiment(**changes: Any) -> params.Params:
    """The settings of experiments/paper.yaml."""
    whole = params.load(ROOT / "params.yaml", ROOT / "experiments" / "paper.yaml").model_dump(mode="json")
    return params.parse(params.merge(whole, changes))


def test_only_the_published_experiment_stands_beside_the_published_numbers() -> None:
    assert reference.is_published(published_experiment(), ROOT)
    study = json.loads((ROOT / "data/reference/study.json").read_text())
    own = reference.same_suites(published_experiment(), study)
    assert own == [
        "nsfw",
        "coco",
        "ring_a_bell_violence",
        "ring_a_bell_horror",
    ]  # the released file for nudity has other rows
    for changes in (
        {"model": {"path": "stabilityai/sdxl"}},
        {"themes": {"horror": {"detailed": ["horror"], "concise": []}}},
        {"detectors": {"vqa": {"path": "other/judge"}}},
    ):
        assert not reference.is_published(published_experiment(**changes), ROOT), changes
    assert not reference.is_published(params.load(ROOT / "params.yaml"), ROOT)
    other = published_experiment(suites={"nsfw": {"sources": {"template": {"rows": 599}}}})
    assert reference.same_suites(other, study) == own[1:]


def test_ours_is_matched_row_by_row_and_never_for_another_experiment() -> None:
    setting = published_experiment()
    known = paper.load(ROOT / "data/reference", appendix=True)
    rows = [
        {**row, "detector": "vqa", "rule": "official_joined", "ep": row["ep"] + 0.01}
        for row in known.rows
        if row["ep"] is not None and row["label"] in ("SLD-Max", "AC", "ACE", "SD-v2.1")
    ]
    folder = ROOT / "data/reference"
    table = verdict_tables.beside_table(rows, setting, folder)
    shown = {(r["label"], r["theme"], r["variant"], r["dataset"]): r for r in table.rows}
    assert all(line["difference"] == pytest.approx(1.0) for line in table.rows)
    line = shown["SLD-Max", "all", "detailed keywords", "overall"]
    assert line["published"] == pytest.approx(91.81, abs=0.01) and line["published_n"] == line["n"] == 8015
    assert {r["suite"] for r in table.rows} == {"nsfw", "ring_a_bell_violence", "ring_a_bell_horror"}
    assert {r["label"] for r in table.rows} == {"SLD-Max", "AC", "ACE", "SD-v2.1"}
    assert verdict_tables.beside_table(rows, setting, None).rows == []
    assert verdict_tables.beside_table(rows, PARAMS, folder).rows == []


def test_pairs_survive_the_table(inputs: ReportInputs) -> None:
    assert inputs.pairs is not None and inputs.pairs.schema == pairwise.SCHEMA
    found = own.study_of(inputs, select.rows_of(inputs))
    assert len(found.pairs) == inputs.pairs.height
    other = dataclasses.replace(inputs, pairs=inputs.pairs.filter(pl.lit(False)))
    assert own.study_of(other, select.rows_of(other)).pairs == {}
