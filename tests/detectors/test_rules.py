"""Scores to verdicts."""

from __future__ import annotations

import polars as pl
import pytest

from palimpsest import specs
from palimpsest.detectors import questions, rules

THEMES = {"nature": ["rain", "snow"], "night": ["stars"]}
JOINED = specs.Rule(kind="joined", threshold=0.5)
RULES = {
    "joined": JOINED,
    "worded": specs.Rule(kind="joined", threshold=0.5, texts={"nature": "weather"}),
    "words": specs.Rule(kind="any_keyword", threshold=0.7),
}


def scores(values: dict[str, list[float | None]]) -> pl.DataFrame:
    rows = []
    for label, column in values.items():
        for i, score in enumerate(column):
            row = {
                "image_id": f"i2p/{i:05d}/00",
                "source": "i2p",
                "prompt_id": i,
                "repetition": 0,
                "decision": "generated",
            }
            rows.append(row | {"label": label, "score": score})
    return pl.DataFrame(rows, schema_overrides={"score": pl.Float32})


SCORES = scores(
    {
        "theme/nature": [0.9, 0.5, 0.1, None],
        "theme/night": [0.1, 0.1, 0.6, None],
        "text/nature/worded": [0.2, 0.8, 0.1, None],
        "keyword/rain": [0.6, 0.1, 0.1, None],
        "keyword/snow": [0.71, 0.2, 0.1, None],
        "keyword/stars": [0.1, 0.1, 0.65, None],
    }
)


def unsafe(frame: pl.DataFrame, rule: str, theme: str) -> list[bool | None]:
    return (
        frame.filter((pl.col("rule") == rule) & (pl.col("theme") == theme))
        .sort("image_id")["unsafe"]
        .to_list()
    )


def test_only_some_themes_are_asked_for_in_detail() -> None:
    found = questions.questions(THEMES, RULES, ["night"])
    assert [label for label in found if label.startswith("keyword/")] == ["keyword/stars"]
    assert {"theme/nature", "theme/night"} <= set(found)
    assert set(found) < set(questions.questions(THEMES, RULES))


def test_questions_have_one_label_per_theme_keyword_and_other_text() -> None:
    assert questions.questions(THEMES, RULES) == {
        "theme/nature": "rain, snow",
        "theme/night": "stars",
        "keyword/rain": "rain",
        "keyword/snow": "snow",
        "keyword/stars": "stars",
        "text/nature/worded": "weather",
    }


def test_verdicts_of_every_rule() -> None:
    found = rules.verdicts(SCORES, THEMES, RULES)
    assert unsafe(found, "joined", "nature") == [True, False, False, None]  # 0.5 is not above 0.5
    assert unsafe(found, "joined", "night") == [False, False, True, None]
    assert unsafe(found, "joined", "any") == [True, False, True, None]
    assert unsafe(found, "worded", "nature") == [False, True, False, None]
    assert unsafe(found, "worded", "any") == [False, True, True, None]
    assert unsafe(found, "words", "nature") == [True, False, False, None]
    assert unsafe(found, "words", "night") == [False, False, False, None]
    assert len(found) == 3 * 3 * 4


def test_a_rule_asks_only_for_the_labels_it_needs() -> None:
    needed = SCORES.filter(pl.col("label").str.starts_with("theme/"))
    assert len(rules.verdicts(needed, THEMES, {"joined": JOINED})) == 12
    with pytest.raises(ValueError, match=r"rule 'words' cannot judge 'nature'.*keyword/rain .0 of 4 images."):
        rules.verdicts(needed, THEMES, RULES | {"worded": JOINED})


def test_repeated_or_partly_missing_scores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"theme/nature .8 of 4 images."):
        rules.verdicts(pl.concat([SCORES, SCORES]), THEMES, {"joined": JOINED})
    hole = (pl.col("label") == "keyword/snow") & (pl.col("image_id") == "i2p/00001/00")
    broken = SCORES.with_columns(score=pl.when(hole).then(None).otherwise("score"))
    with pytest.raises(ValueError, match=r"1 images have only part of their scores .first: i2p/00001/00."):
        rules.verdicts(broken, THEMES, {"words": RULES["words"]})


def test_an_image_that_stands_twice_does_not_make_up_for_one_that_lacks() -> None:
    lacking = (pl.col("label") == "theme/night") & (pl.col("image_id") == "i2p/00001/00")
    twice = (pl.col("label") == "theme/night") & (pl.col("image_id") == "i2p/00002/00")
    broken = pl.concat([SCORES.filter(~lacking), SCORES.filter(twice)])
    with pytest.raises(ValueError, match=r"'night': not scored once per image: .*theme/night"):
        rules.verdicts(broken, THEMES, {"joined": JOINED})


def test_a_label_that_no_rule_needs_may_lack_images() -> None:
    extra = SCORES.head(1).with_columns(label=pl.lit("other"))
    found = rules.verdicts(pl.concat([extra, SCORES]), THEMES, RULES)
    assert found.equals(rules.verdicts(SCORES, THEMES, RULES))


def test_the_order_of_rows_does_not_matter() -> None:
    shuffled = SCORES.sample(fraction=1, shuffle=True, seed=3)
    assert rules.verdicts(shuffled, THEMES, RULES).equals(rules.verdicts(SCORES, THEMES, RULES))


def test_a_threshold_is_applied_to_the_stored_float() -> None:
    edge = scores({"theme/nature": [0.3, 0.31], "theme/night": [0.0, 0.0]})
    stored = edge["score"][0]  # 0.3 in float32 is a little above 0.3
    found = rules.verdicts(edge, THEMES, {"joined": specs.Rule(kind="joined", threshold=stored)})
    assert unsafe(found, "joined", "nature") == [False, True]


def test_each_theme_may_have_its_own_threshold() -> None:
    rule = specs.Rule(kind="calibrated", thresholds={"nature": 0.05, "night": 0.7})
    found = rules.verdicts(SCORES, THEMES, {"own": rule})
    assert unsafe(found, "own", "nature") == [True, True, True, None]
    assert unsafe(found, "own", "night") == [False, False, False, None]
    assert unsafe(found, "own", "any") == [True, True, True, None]
    assert rules.threshold("night", rule) == 0.7 and rules.threshold("nature", JOINED) == 0.5


def test_labels_of_a_detector_that_is_asked_nothing() -> None:
    table = scores({"HAND": [0.5, 0.1, None], "FOOT": [0.2, 0.45, None], "sky": [0.9, 0.9, None]})
    limbs = specs.Rule(
        kind="labels", threshold=0.4, labels={"nature": ["HAND", "FOOT"]}, detectors=["nudenet"]
    )
    found = rules.verdicts(table, THEMES, {"limbs": limbs})
    assert unsafe(found, "limbs", "nature") == [True, True, None]
    assert set(found["theme"]) == {"nature"}  # nothing is said about night, so nothing about any
    anything = specs.Rule(kind="labels", labels={"any": ["sky"]}, detectors=["checker"])
    found = rules.verdicts(table, THEMES, {"flag": anything})
    assert unsafe(found, "flag", "any") == [True, True, None] and set(found["theme"]) == {"any"}
    own = specs.Rule(kind="calibrated", labels={"nature": ["FOOT"]}, thresholds={"nature": 0.3, "night": 0.5})
    found = rules.verdicts(table, {"nature": ["rain"]}, {"own": own})
    assert unsafe(found, "own", "nature") == unsafe(found, "own", "any") == [False, True, None]


def test_of_competing_classes_the_first_largest_wins() -> None:
    table = scores(
        {
            "theme/nature": [0.4, 0.3, 0.2, None, 0.5],
            "theme/night": [0.3, 0.3, 0.2, None, 0.1],
            "safe": [0.3, 0.4, 0.6, None, 0.5],
        }
    )
    largest = specs.Rule(kind="argmax", detectors=["clip"])
    found = rules.verdicts(table, THEMES, {"largest": largest})
    assert unsafe(found, "largest", "nature") == [True, False, False, None, True]
    assert unsafe(found, "largest", "night") == [False, False, False, None, False]
    assert unsafe(found, "largest", "any") == [True, False, False, None, True]
    # a variant is judged for its own theme against all the others
    alone = rules.verdicts(table, {"night": ["stars"]}, {"largest": largest})
    assert unsafe(alone, "largest", "night") == [False, False, False, None, False]


def test_a_rule_that_says_nothing_gives_no_row() -> None:
    silent = specs.Rule(kind="labels", labels={"nature": ["HAND"]}, detectors=["nudenet"])
    assert rules.verdicts(SCORES, {"night": ["stars"]}, {"limbs": silent}).is_empty()
    assert rules.verdicts(SCORES, THEMES, {}).is_empty()
