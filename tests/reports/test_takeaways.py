from __future__ import annotations

from typing import Any

import fake_inputs
import pytest

from palimpsest.reports import select, tables
from palimpsest.reports.conclusions import erasure, levels, own, registry, side_effects
from palimpsest.reports.conclusions.study import Study
from palimpsest.reports.intervals import Estimate, difference, mean, wilson

PARAMS = fake_inputs.settings()


def row(method: str, theme: str, ep: float | None, half: float = 0.05, **other: Any) -> dict[str, Any]:
    """A row as `select.rows_of` gives it."""
    found = dict.fromkeys(fake_inputs.CELL_COLUMNS)
    found |= {
        "method": method,
        "preset": "default",
        "theme": theme,
        "judged_theme": theme,
        "suite": "nsfw",
        "dataset": "overall",
    }
    found |= {
        "detector": "vqa",
        "rule": "joined",
        "status": "ok",
        "n": 200,
        "n_base_unsafe": 100,
        "keyword_set": "detailed",
    }
    found |= {
        "label": method,
        "variant": "",
        "stage": "closed form",
        "is_base": method == "sd",
        "anchor": f"row-{method}-{theme}",
    }
    if ep is not None:
        found |= {"ep": ep, "ep_low": ep - half, "ep_high": ep + half}
    return {**found, **other}


def study(rows: list[dict[str, Any]]) -> Study:
    """These rows with the settings of the test experiment."""
    return Study("test_data", PARAMS, rows)


def test_difference_matches_the_closed_form_for_symmetric_intervals() -> None:
    gap = difference(Estimate(0.9, 0.8, 1.0), Estimate(0.5, 0.3, 0.7))
    assert gap.value == pytest.approx(0.4)
    assert (gap.low, gap.high) == (pytest.approx(0.4 - 0.05**0.5), pytest.approx(0.4 + 0.05**0.5))


def test_wilson_matches_the_published_example() -> None:
    found = wilson(81, 263)  # Newcombe 1998, Statistics in Medicine 17:857, Table I: 0.2553 to 0.3662
    assert (found.low, found.high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))


def test_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean([])


@pytest.mark.parametrize(("second", "level"), [(0.85, "open"), (0.5, "finding")])
def test_best_method_is_asserted_only_when_the_difference_excludes_zero(second: float, level: str) -> None:
    [found] = erasure.best_methods(
        study([row("a", "glitch", 0.9), row("b", "glitch", second), row("sd", "glitch", 1.0)])
    )
    assert found.level == level
    assert ("cannot be told apart" in found.sentence) == (level == "open")
    assert "90.0 %, by a" in found.sentence
    assert [e.anchor for e in found.evidence[:2]] == ["row-a-glitch", "row-b-glitch"]
    assert found.evidence[0].n == 200


def test_best_method_takes_each_methods_best_variant_and_compares_with_another_method() -> None:
    rows = [row("a", "glitch", 0.9), row("a", "glitch", 0.88, keyword_set="concise"), row("b", "glitch", 0.3)]
    [found] = erasure.best_methods(study(rows))
    assert found.level == "finding"
    assert "ahead of b" in found.sentence


def test_themes_with_too_few_unsafe_base_images_are_not_ranked_but_named() -> None:
    rows = [row("a", "glitch", 0.9, n_base_unsafe=29), row("b", "glitch", 0.1, n_base_unsafe=29)]
    assert erasure.best_methods(study(rows)) == []
    [found] = side_effects.unranked(study(rows))
    assert "glitch on nsfw (29)" in found.sentence
    assert "30 are needed" in found.sentence


def test_failed_rows_and_other_rules_do_not_speak() -> None:
    rows = [row("a", "glitch", 0.9, status="failed"), row("b", "glitch", 0.9, rule="any")]
    assert erasure.best_methods(study(rows)) == []
    [found] = side_effects.incomplete(study(rows))
    assert "1 failed of 2" in found.sentence


def test_no_effect_and_worse() -> None:
    rows = [row("a", "glitch", 0.04), row("b", "glitch", -0.3), row("c", "glitch", 0.5)]
    none, worse = erasure.without_effect(study(rows))
    assert none.level == "open"
    assert "1 of 3" in none.sentence
    assert "a on glitch" in none.sentence
    assert worse.level == "warning"
    assert "b on glitch" in worse.sentence
    assert erasure.without_effect(study([row("c", "glitch", 0.5)])) == []


@pytest.mark.parametrize(("hard", "level"), [(0.4, "finding"), (0.78, "open")])
def test_hardest_theme(hard: float, level: str) -> None:
    rows = [row(m, t, ep) for m in "ab" for t, ep in (("glitch", hard), ("uncased", 0.8), ("breakage", 0.9))]
    rows.append(row("c", "glitch", -0.9))  # measured on one theme only: it must not count
    [found] = erasure.hardest_theme(study(rows))
    assert found.level == level
    assert "over 2 variants" in found.sentence
    assert ("hardest theme to erase is glitch" in found.sentence) == (level == "finding")


@pytest.mark.parametrize(("concise", "word"), [(0.5, "more"), (0.95, "less"), (0.81, "cannot be told apart")])
def test_keyword_sets(concise: float, word: str) -> None:
    rows = [
        row(m, "glitch", ep, keyword_set=words)
        for m in "ab"
        for words, ep in (("detailed", 0.8), ("concise", concise))
    ]
    rows.append(row("c", "glitch", 0.1))
    [found] = erasure.keyword_sets(study(rows))
    assert "2 matched pairs" in found.sentence
    assert word in found.sentence
    assert (found.level == "open") == (concise == 0.81)


def test_training_images_states_the_cost() -> None:
    rows = [
        row("a", "glitch", ep, keyword_set=None, training_images=size, fit_seconds=s)
        for size, ep, s in ((20, 0.5, 10.0), (200, 0.52, 90.0))
    ]
    [found] = erasure.training_images(study(rows))
    assert found.level == "open"
    assert "90 s instead of 10 s" in found.sentence


def test_one_theme_against_all() -> None:
    rows = [
        row("a", "glitch", 0.9),
        {**row("a", "glitch", 0.4), "theme": "all"},
        {**row("a", "uncased", 0.4), "theme": "all"},
    ]
    [found] = erasure.one_or_all(study(rows))
    assert "1 matched pair," in found.sentence
    assert "gives less EP" in found.sentence


def test_false_alarms() -> None:
    quiet = row("a", "glitch", None, suite="coco", n=60, n_base_unsafe=0, n_unsafe=1)
    loud = row("b", "glitch", None, suite="coco", n=60, n_base_unsafe=0, n_unsafe=20)
    [found] = side_effects.false_alarms(study([quiet]))
    assert found.level == "open"
    [found] = side_effects.false_alarms(study([quiet, loud]))
    assert found.level == "warning"
    assert "1 of 2 variants" in found.sentence
    assert "33.3 % after 0.0 %" in found.sentence


def test_drift_is_ranked_only_with_intervals() -> None:
    rows = [row(m, "glitch", None, suite="coco", drift=d) for m, d in (("a", 0.1), ("b", 0.3))]
    [found] = side_effects.drift(study(rows))
    assert "no ranking is claimed" in found.sentence
    rows = [{**r, "drift_low": r["drift"] - 0.01, "drift_high": r["drift"] + 0.01} for r in rows]
    [found] = side_effects.drift(study(rows))
    assert found.level == "finding"
    rows = [{**r, "drift_low": r["drift"] - 0.2, "drift_high": r["drift"] + 0.2} for r in rows]
    [found] = side_effects.drift(study(rows))
    assert "cannot be told apart" in found.sentence


def test_induction_needs_an_interval_above_zero() -> None:
    limits = {"induction": 0.1, "induction_low": 0.0, "induction_high": 0.2}
    assert side_effects.induction(study([row("a", "glitch", 0.5, **limits)])) == []
    [found] = side_effects.induction(study([row("a", "glitch", 0.5, **{**limits, "induction_low": 0.02})]))
    assert "10.0 %" in found.sentence


def test_cost_names_the_cheapest_of_the_indistinguishable() -> None:
    rows = [
        row("slow", "glitch", 0.9, fit_seconds=500.0),
        row("quick", "glitch", 0.88, fit_seconds=2.0),
        row("free", "glitch", 0.2),
    ]
    [found] = side_effects.cost(study(rows))
    assert "of the 2 methods that cannot be told apart, quick is the cheapest with 2 s" in found.sentence
    assert "free" not in found.sentence


def test_nothing_is_said_without_data() -> None:
    assert registry.takeaways(study([])) == []


def test_no_finding_rests_on_a_difference_that_covers_zero(inputs: Any) -> None:
    found = registry.takeaways(own.study_of(inputs, select.rows_of(inputs)))
    assert {item.level for item in found} == {"finding", "open", "warning", "point"}
    for item in found:
        for evidence in item.evidence:
            if item.level == "finding" and ("difference" in evidence.what or " minus " in evidence.what):
                assert evidence.low > 0 or evidence.high < 0, item


def fixed(method: str, theme: str, ep: float, **other: Any) -> dict[str, Any]:
    """A row of a method that cannot be aimed at a theme, judged for one."""
    found = row(method, "all", ep, judged_theme=theme, keyword_set="fixed", **other)
    return {**found, **select.answered(found)}


def test_a_method_that_cannot_be_aimed_is_ranked_on_every_theme() -> None:
    rows = [row("a", t, 0.5) for t in ("glitch", "uncased")]
    rows += [fixed("filter", t, 0.9, n_answered=120) for t in ("glitch", "uncased")]
    rows += [row("b", "all", 0.99, judged_theme="glitch"), fixed("filter", "any", 0.95, n_answered=120)]
    found = erasure.best_methods(study(rows))
    assert [item.id for item in found] == ["best.nsfw.glitch", "best.nsfw.uncased"]
    for item in found:
        assert "90.0 %, by filter (which answered 60.0 % of these prompts), ahead of a" in item.sentence
    assert not select.stands_for(rows[-1], "any")
    [hardest] = erasure.hardest_theme(study(rows))
    assert "over 2 variants" in hardest.sentence


def test_methods_are_compared_on_the_themes_that_were_erased_one_by_one() -> None:
    """A filter is judged for every theme; where nothing else was aimed at one, it would stand there alone and keep others from a mean."""
    some = fake_inputs.settings(variants={"themes": ["glitch", "uncased", "all"]})
    assert select.erased_themes(some) == [theme for theme in some.themes if theme in ("glitch", "uncased")]
    assert select.erased_themes(fake_inputs.settings(variants={"themes": ["all"]})) == list(some.themes)
    rows = [row(name, t, value) for name, value in (("a", 0.5), ("b", 0.2)) for t in ("glitch", "uncased")]
    rows += [fixed("filter", t, 0.9, n_answered=120) for t in ("glitch", "uncased", "breakage")]
    whole, part = (Study("test_data", setting, rows) for setting in (PARAMS, some))
    ranked = [{s.label for s in levels.standings(levels.ERASURE, given).standings} for given in (whole, part)]
    assert ranked == [set(), {"a", "b", "filter"}]
    assert [item.id for item in erasure.best_methods(part)] == ["best.nsfw.glitch", "best.nsfw.uncased"]


def test_refused_benign_prompts_are_named_and_count_as_no_safe_images() -> None:
    def benign(method: str, answered: int, unsafe: int, **other: Any) -> dict[str, Any]:
        counts = {"n": 200, "n_answered": answered, "n_unsafe": unsafe, "n_base_unsafe": 8}
        return fixed(method, "glitch", 0.0, suite="coco", ep_low=None, ep_high=None, **counts, **other)

    rows = [benign("filter", 40, 8), benign("other", 200, 8), benign("none", 0, 0)]
    [found] = side_effects.refusals(study([*rows, {**rows[0], "judged_theme": "uncased"}]))
    assert found.level == "warning"
    assert "in 2 of 3 variants" in found.sentence and "none on coco: 0.0 % of 200" in found.sentence
    assert [(e.value, e.n) for e in found.evidence] == [(0.0, 200), (0.2, 200)]
    assert side_effects.refusals(study(rows[1:2])) == []
    # eight alarms in forty pictures are a rise over eight in two hundred; in all two hundred prompts they would be none
    [alarms] = side_effects.false_alarms(study(rows))
    assert (
        "in 1 of 2 variants" in alarms.sentence and "filter on glitch: 20.0 % after 4.0 %" in alarms.sentence
    )
    table = tables.benign_table(rows, PARAMS)
    assert [r["alarms"] for r in table.rows] == [0.2, 0.04, None]
    assert [tables.shown(table.columns[5], r).text for r in table.rows] == ["20.0", "100.0", "0.0"]
