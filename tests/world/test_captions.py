"""Captions say what scenes show; suites have the structure of the data sets they stand for."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from palimpsest.world import suites
from palimpsest.world.captions import article, implicit_example, mentions_keyword, training_example
from palimpsest.world.phrases import IMPLICIT, IMPLICIT_SHARE, LOUD, PLACES
from palimpsest.world.scene import labels_of
from palimpsest.world.vocab import BACKGROUNDS, COLOURS, KEYWORDS, OBJECTS, SAFE_PHRASES, THEMES

COMMITTED = Path(__file__).parents[2] / "data" / "micro" / "prompts"


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(21)
    return [training_example(rng) for _ in range(4000)]


def test_a_named_keyword_is_drawn(examples):
    for example in examples:
        truth = labels_of(example.scene).keywords
        if example.style != "list":  # of a list of glitches at most two are drawn
            assert all(truth[word] for word in example.keywords), example
        assert all(word in example.text for word in example.keywords)


def test_benign_styles_draw_no_theme_and_name_none(examples):
    for example in examples:
        if example.style in ("plain", "safe", "loud"):
            assert not mentions_keyword(example.text)
            assert not any(labels_of(example.scene).themes.values())


def test_captions_name_only_objects_colours_and_places_of_the_scene(examples):
    for example in examples:
        truth, words = labels_of(example.scene), example.text.replace(",", " ").split()
        assert {word for word in words if word in OBJECTS} <= set(truth.objects)
        assert {word for word in words if word in COLOURS} - {"green"} <= set(
            truth.colours
        )  # "a green field"
        for place in BACKGROUNDS:
            if any(f" {phrase}" in example.text for phrase in PLACES[place]):
                assert truth.background == place


def test_keywords_are_equally_frequent(examples):
    single = Counter(e.keywords[0] for e in examples if len(e.keywords) == 1)
    assert set(single) == set(KEYWORDS)
    for words in THEMES.values():
        counts = [single[word] for word in words]
        assert max(counts) < 1.6 * min(counts)


def test_implicit_phrasings_name_nothing_and_draw_their_theme_mostly():
    assert not any(
        mentions_keyword(text)
        for texts in (*IMPLICIT.values(), LOUD, *SAFE_PHRASES.values())
        for text in texts
    )
    rng = np.random.default_rng(0)
    for theme in THEMES:
        shown = [labels_of(implicit_example(theme, rng).scene).themes[theme] for _ in range(600)]
        assert np.mean(shown) == pytest.approx(IMPLICIT_SHARE, abs=0.06)


@pytest.mark.parametrize(
    ("text", "right"), [("a orange  ball", "an orange ball"), ("an red car ,", "a red car")]
)
def test_articles(text, right):
    assert article(text) == right


def test_committed_suites_are_what_the_code_writes(tmp_path):
    counts = suites.write_all(tmp_path)
    for name, count in counts.items():
        assert (COMMITTED / name).read_bytes() == (tmp_path / name).read_bytes(), name
        with (COMMITTED / name).open(encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle)) if name.endswith(".csv") else handle.readlines()
            assert len(rows) == count


def rows(name):
    with (COMMITTED / name).open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_i2p_implies_its_themes_without_naming_them():
    assert not any(mentions_keyword(row["prompt"]) for row in rows("i2p.csv"))
    assert {row["categories"] for row in rows("i2p.csv")} == set(THEMES)


@pytest.mark.parametrize(("name", "repeats"), [("4chan.csv", 2), ("lexica.csv", 2), ("template.csv", 8)])
def test_repeats_stand_in_blocks(name, repeats):
    table = rows(name)
    size = len(table) // repeats
    assert [int(row["case_number"]) for row in table] == list(range(len(table)))
    prompts = [row["prompt"] for row in table]
    assert len(set(prompts)) == size
    assert prompts == prompts[:size] * repeats


def test_every_prompt_has_a_toxicity():
    known = {row["prompt_sha256"] for row in rows("toxicity.csv")}
    for name in ("4chan.csv", "lexica.csv", "template.csv", "coco.csv"):
        assert {suites.sha256(row["prompt"]) for row in rows(name)} <= known
