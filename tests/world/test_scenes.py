"""Renders: deterministic, and their labels are exact."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.world.mixture import BENIGN_SHARE, draw_effects, training_scene
from palimpsest.world.render import grid, render, render_all
from palimpsest.world.scene import Scene, Thing, effects_of, labels_of, sample_scene
from palimpsest.world.vocab import BACKGROUNDS, COLOURS, KEYWORDS, OBJECTS, THEME_OF, THEMES

PLAIN = Scene("room", Thing("robot", "red", 32), seed=5)


def with_effects(*effects: str) -> Scene:
    return Scene("room", Thing("robot", "red", 32), effects=effects, seed=5)


def test_a_scene_is_always_drawn_the_same():
    scenes = [training_scene(np.random.default_rng(seed)) for seed in range(30)]
    assert np.array_equal(render_all(scenes), render_all(scenes))
    assert render(PLAIN).shape == (64, 64, 3)
    assert render(PLAIN).dtype == np.uint8


def test_scenes_differ_with_their_content():
    images = [
        render(Scene(place, Thing(kind, colour, 32)))
        for place in BACKGROUNDS
        for kind in OBJECTS
        for colour in COLOURS
    ]
    assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_shows_its_colour(kind, colour):
    image = render(Scene("room", Thing(kind, colour, 32))).astype(int)
    near = np.abs(image - np.array(COLOURS[colour])).sum(axis=2) < 12
    assert near.sum() > 120


@pytest.mark.parametrize("effect", [*(w for w in KEYWORDS if w not in THEMES), "bands"])
def test_every_effect_changes_much_of_the_picture(effect):
    changed = np.abs(render(with_effects(effect)).astype(int) - render(PLAIN)).sum(axis=2) > 60
    assert changed.mean() > 0.03, f"{effect} changes only {changed.mean():.1%} of the pixels"


def test_static_is_made_of_grey_blocks_over_half_the_picture():
    blocks = (
        render(with_effects("static")).reshape(16, 4, 16, 4, 3).transpose(0, 2, 1, 3, 4).reshape(256, 16, 3)
    )
    flat = (blocks == blocks[:, :1]).all(axis=(1, 2)) & (blocks[:, 0].max(axis=1) == blocks[:, 0].min(axis=1))
    assert 0.45 < flat.mean() < 0.8


def test_scrambled_only_moves_tiles_and_leaves_none_in_its_place():
    def tiles(image):
        parts = image.reshape(4, 16, 4, 16, 3).transpose(0, 2, 1, 3, 4).reshape(16, -1)
        return [part.tobytes() for part in parts]

    before, after = tiles(render(PLAIN)), tiles(render(with_effects("scrambled")))
    assert sorted(before) == sorted(after)
    moved = [a != b for a, b in zip(before, after, strict=True)]
    assert sum(moved) >= 12  # equal-looking tiles of wall or floor may stand in for each other


def test_labels_of_a_theme_word_cover_the_theme():
    truth = labels_of(with_effects("gears"))
    assert truth.themes == {"uncased": True, "breakage": False, "glitch": False}
    assert truth.keywords["gears"] and truth.keywords["uncased"]
    assert not truth.keywords["exposed wiring"]
    assert {"gears", "joints", "limbs", "head"} <= truth.parts
    assert "casing" not in truth.parts


def test_labels_of_a_harmless_scene():
    truth = labels_of(Scene("night", Thing("robot", "blue", 30), Thing("car", "red", 50)))
    assert not any(truth.keywords.values())
    assert "casing" in truth.parts and "joints" not in truth.parts
    assert truth.pairs == (("blue", "robot"), ("red", "car"))
    assert truth.background == "night"


def test_torn_bands_count_as_glitch_but_as_no_other_keyword():
    truth = labels_of(with_effects("bands"))
    assert [word for word, shown in truth.keywords.items() if shown] == ["glitch"]


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_keyword_draws_what_its_label_says(keyword):
    rng = np.random.default_rng(3)
    for _ in range(20):
        scene = sample_scene(rng, effects_of(keyword, rng))
        assert labels_of(scene).keywords[keyword]
        assert labels_of(scene).themes[THEME_OF[keyword]]


def test_theme_words_reach_every_keyword_of_their_theme():
    rng = np.random.default_rng(0)
    for theme, words in THEMES.items():
        reached = {effect for _ in range(200) for effect in effects_of(theme, rng)}
        assert set(words[1:]) <= reached


def test_an_uncased_object_must_be_a_robot():
    with pytest.raises(ValueError, match="only robots have a casing"):
        sample_scene(np.random.default_rng(0), ("gears",), kind="house")


def test_unknown_keywords_are_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'rust'.*known keywords: uncased"):
        effects_of("rust", np.random.default_rng(0))


def test_the_mixture_is_balanced():
    rng = np.random.default_rng(11)
    truths = [labels_of(training_scene(rng)) for _ in range(3000)]
    shares = {theme: np.mean([truth.themes[theme] for truth in truths]) for theme in THEMES}
    assert np.mean([not any(t.themes.values()) for t in truths]) == pytest.approx(BENIGN_SHARE, abs=0.03)
    assert all(0.17 < share < 0.24 for share in shares.values()), shares


def test_a_list_of_glitches_shows_two_at_most():
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert 1 <= len(draw_effects(THEMES["glitch"], rng)) <= 2


def test_grid_places_pictures_row_by_row():
    images = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (10, 20, 30)])
    sheet = grid(images, 2)
    assert sheet.shape == (4, 4, 3)
    assert sheet[0, 0, 0] == 10 and sheet[0, 3, 0] == 20 and sheet[3, 0, 0] == 30 and sheet[3, 3, 0] == 255
