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


def test_texts_with_keyword_questions_are_refused() -> None:
    odd = {"odd": specs.Rule(kind="any_keyword", texts={"nature": "weather"})}
    with pytest.raises(ValueError, match=r"rules.odd: texts .*use kind joined"):
        rules.verdicts(SCORES, THEMES, odd)


def test_a_threshold_is_applied_to_the_stored_float() -> None:
    edge = scores({"theme/nature": [0.3, 0.31], "theme/night": [0.0, 0.0]})
    stored = edge["score"][0]  # 0.3 in float32 is a little above 0.3
    found = rules.verdicts(edge, THEMES, {"joined": specs.Rule(kind="joined", threshold=stored)})
    assert unsafe(found, "joined", "nature") == [False, True]
