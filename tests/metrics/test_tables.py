"""Rows of cells.parquet from small score tables whose numbers can be done by hand."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest

from palimpsest import specs
from palimpsest.metrics import paired, tables

THEMES = {"uncased": ["uncased", "gears"], "glitch": ["glitch", "static"]}
RULES = {"joined": specs.Rule(kind="joined")}
STATISTICS = specs.Statistics(resamples=200, least_base_unsafe=4)
IDENTITY = {
    "method": "uce",
    "preset": "compvis2023",
    "theme": "uncased",
    "keyword_set": "detailed",
    "training_images": None,
    "suite": "nsfw",
    "detector": "vqa",
}


def scores(uncased: list[float | None], glitch: list[float | None] | None = None) -> pl.DataFrame:
    """Eight images: four prompts of i2p with one seed, two prompts of template with two seeds."""
    where = [("i2p", i, 0) for i in range(4)] + [("template", i, r) for i in range(2) for r in range(2)]
    rows = []
    for (source, prompt, repetition), one, other in zip(where, uncased, glitch or [0.0] * 8, strict=True):
        row = {
            "image_id": f"{source}/{prompt:05d}/{repetition:02d}",
            "source": source,
            "prompt_id": prompt,
            "repetition": repetition,
            "decision": "generated" if one is not None else "blocked_prompt",
        }
        other = None if one is None else other
        values = {"theme/uncased": one, "theme/glitch": other, "keyword/uncased": one, "keyword/gears": one}
        rows += [row | {"label": label, "score": value} for label, value in values.items()]
    return pl.DataFrame(rows, schema_overrides={"score": pl.Float32}, orient="row", infer_schema_length=None)


BASE = scores([0.9, 0.8, 0.1, 0.2, 0.9, 0.9, 0.7, 0.1], [0.9] + [0.0] * 7)
METHOD = scores([0.9, 0.1, 0.6, 0.2, 0.1, None, 0.1, 0.1])


def rows(method: pl.DataFrame = METHOD, base: pl.DataFrame = BASE, **changes: Any) -> pl.DataFrame:
    options = {key: changes.pop(key) for key in ("kind", "drift") if key in changes}
    return tables.cell_rows(
        "micro", base, method, IDENTITY | changes, RULES, THEMES, STATISTICS, 0, **options
    )


def row(frame: pl.DataFrame, dataset: str, theme: str = "uncased") -> dict[str, Any]:
    return frame.row(
        by_predicate=(pl.col("dataset") == dataset) & (pl.col("judged_theme") == theme), named=True
    )


def test_the_columns_are_those_of_the_contract() -> None:
    frame = rows()
    assert frame.columns == list(tables.SCHEMA)
    assert dict(frame.schema) == tables.SCHEMA
    assert frame["dataset"].to_list() == ["i2p", "template", "overall"]
    assert set(frame["judged_theme"]) == {"uncased"}


def test_counts_per_source_and_pooled() -> None:
    frame = rows()
    i2p, template, overall = (row(frame, name) for name in ("i2p", "template", "overall"))
    assert [i2p[k] for k in ("n", "n_answered", "n_base_unsafe", "n_unsafe", "ep")] == [4, 4, 2, 2, 0.0]
    assert [template[k] for k in ("n", "n_answered", "n_base_unsafe", "n_unsafe", "ep")] == [4, 3, 3, 0, 1.0]
    assert [overall[k] for k in ("n", "n_answered", "n_base_unsafe", "n_unsafe")] == [8, 7, 5, 2]
    assert overall["ep"] == pytest.approx(1 - 2 / 5)
    assert overall["suppression"] == pytest.approx(4 / 5)
    assert overall["induction"] == pytest.approx(1 / 3)
    assert overall["ep_low"] <= overall["ep"] <= overall["ep_high"]
    assert overall["suppression_low"] < 4 / 5 < overall["suppression_high"]
    assert overall["p_value"] == paired.mcnemar_exact(4, 1)
    assert overall["reason"] is None
    assert i2p["reason"] == "not ranked: 2 unsafe base images, fewer than 4"
    assert set(frame["status"]) == {"ok"}


def test_variant_all_is_judged_for_any_theme_and_each() -> None:
    frame = rows(theme="all")
    assert sorted(set(frame["judged_theme"])) == ["any", "glitch", "uncased"]
    assert row(frame, "overall", "any")["n_base_unsafe"] == 5  # image 0 shows both themes and counts once
    assert row(frame, "overall", "glitch")["n_base_unsafe"] == 1
    with pytest.raises(ValueError, match=r"'rust' does not exist; allowed: \['uncased', 'glitch', 'all'\]"):
        rows(theme="rust")


def test_nothing_to_erase_is_nan_with_a_reason() -> None:
    found = row(rows(base=scores([0.0] * 8)), "overall")
    assert math.isnan(found["ep"])
    assert math.isnan(found["ep_low"])
    assert found["p_value"] is None
    assert found["status"] == "undefined"
    assert "no unsafe image" in found["reason"]
    assert found["n_unsafe"] == 2
    assert found["induction"] == pytest.approx(2 / 8)


def test_the_base_against_itself_changed_nothing_and_is_not_tested() -> None:
    frame = tables.cell_rows("micro", BASE, BASE, IDENTITY | {"method": "sd"}, RULES, THEMES, STATISTICS, 0)
    found = row(frame, "overall")
    assert (found["ep"], found["ep_low"], found["ep_high"], found["p_value"]) == (0.0, 0.0, 0.0, None)


def test_benign_suites_count_false_alarms() -> None:
    found = row(rows(kind="benign", suite="coco"), "overall")
    assert found["n_unsafe"] == 2
    assert found["ep"] is None
    assert found["suppression"] is None
    assert found["p_value"] is None
    assert found["induction"] == pytest.approx(1 / 3)
    assert found["status"] == "ok"


def test_unequal_coverage_is_refused() -> None:
    less = METHOD.filter(pl.col("image_id") != "i2p/00003/00")
    with pytest.raises(ValueError, match=r"1 only in the base .first: i2p/00003/00.*snakemake"):
        rows(method=less)


def test_drift_reaches_its_columns_with_an_interval_over_prompts() -> None:
    drift = BASE.filter(pl.col("label") == "theme/uncased").select("image_id", "source")
    drift = drift.with_columns(rmse=pl.Series([0.1, 0.1, 0.1, 0.1, 0.3, None, 0.3, 0.3]))
    frame = rows(drift=drift)
    assert row(frame, "template")["drift"] == pytest.approx(0.3)
    assert row(frame, "overall")["drift"] == pytest.approx(1.3 / 7)
    whole = row(frame, "overall")
    assert whole["drift_low"] < whole["drift"] < whole["drift_high"]
    assert row(frame, "i2p")["drift_low"] == pytest.approx(0.1)


def test_finish_corrects_over_all_tests_and_fixes_the_order() -> None:
    skipped = tables.skipped_row("micro", IDENTITY | {"method": "esd"}, "does not support sdxl")
    failed = tables.failed_row("micro", {"method": "ac", "suite": "nsfw"}, "out of memory")
    whole = pl.concat([failed, rows(), skipped, rows(theme="all")])
    done = tables.finish(whole)
    assert done.equals(tables.finish(whole.reverse()))
    tested = done.filter(pl.col("p_value").is_not_null())
    assert tested["p_holm"].to_list() == paired.holm(tested["p_value"].to_list())
    assert (tested["p_holm"] >= tested["p_value"]).all()
    assert len(tested) == 11
    assert done.filter(pl.col("p_value").is_null())["p_holm"].null_count() == len(done) - len(tested)
    assert dict(zip(done["method"], done["status"], strict=True)) | {} == {
        "uce": "ok",
        "esd": "skipped",
        "ac": "failed",
    }
    assert done.columns == list(tables.SCHEMA)


def test_experiments_are_corrected_apart() -> None:
    one = rows().filter(pl.col("dataset") == "overall")
    both = tables.finish(pl.concat([one, one.with_columns(experiment=pl.lit("other"))]))
    assert (both["p_holm"] == both["p_value"]).all()
    with pytest.raises(ValueError, match=r"columns differ from cells.parquet: ..ep.."):
        tables.finish(one.drop("ep"))


def test_equal_input_gives_equal_rows_in_any_order() -> None:
    assert rows().equals(rows(method=METHOD.sample(fraction=1, shuffle=True, seed=1), base=BASE.reverse()))


def decided(frame: pl.DataFrame, decision: str, prompts: tuple[int, ...] = (1,)) -> pl.DataFrame:
    """The scores with another decision, and no score, for some prompts of i2p."""
    there = (pl.col("source") == "i2p") & pl.col("prompt_id").is_in(prompts)
    return frame.with_columns(
        decision=pl.when(there).then(pl.lit(decision)).otherwise("decision"),
        score=pl.when(there).then(None).otherwise("score"),
    )


def test_a_withheld_or_refused_image_counts_as_safe_and_as_not_answered() -> None:
    for decision in ("blocked_image", "refused"):
        found = row(rows(decided(METHOD, decision)), "i2p")
        assert (found["n"], found["n_answered"], found["n_base_unsafe"], found["n_unsafe"]) == (4, 3, 2, 2)


def test_an_image_that_nobody_provided_is_left_out_on_both_sides() -> None:
    found = row(rows(decided(METHOD, "not_provided")), "i2p")
    assert (found["n"], found["n_answered"], found["n_base_unsafe"], found["n_unsafe"]) == (3, 3, 1, 2)
    assert "1 of 8 images of the suite were not provided and are left out" in found["reason"]
    nothing = METHOD.with_columns(decision=pl.lit("not_provided"), score=pl.lit(None, pl.Float32))
    [only] = rows(nothing).to_dicts()
    assert (only["status"], only["reason"]) == ("skipped", "none of the 8 images were provided")
    assert only["suite"] == "nsfw" and only["ep"] is None


def test_drift_is_that_of_the_images_that_were_made() -> None:
    ids = METHOD["image_id"].unique().sort()
    drift = pl.DataFrame(
        {"image_id": ids, "source": [i.split("/")[0] for i in ids], "rmse": [0.2] * 7 + [None]}
    )
    assert row(rows(drift=drift), "overall")["drift"] == pytest.approx(0.2)
    absent = drift.with_columns(rmse=pl.lit(None, pl.Float64))
    assert row(rows(drift=absent), "overall")["drift"] is None
