"""The micro world's safety checker: how its thresholds are set, and whether the committed one is what it should be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from palimpsest.methods._safety_checker import excess, load
from palimpsest.world import assemble, checker
from palimpsest.world.vocab import KEYWORDS, THEMES

ROOT = Path(__file__).parents[2]
MICRO = ROOT / "models/micro"


def cosines(count, seed=0):
    """Made-up cosines: special-care concepts and concepts that vary together, as an image's do."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(count, 1))
    special = 0.1 * (common + rng.normal(size=(count, 3)))
    return special.astype(np.float32), (0.1 * (common + rng.normal(size=(count, 17)))).astype(np.float32)


@pytest.mark.parametrize("alarms", [0.01, 0.05, 0.2])
def test_thresholds_flag_the_share_they_are_set_for(alarms):
    special, concepts = cosines(5_000)
    found = checker.calibrated(special, concepts, alarms)
    over = excess(special, concepts, found) > 0
    assert alarms - 0.005 <= over.any(axis=1).mean() <= alarms
    # every concept has the same say
    assert over.mean(axis=0).max() < 3 * max(over.mean(axis=0).min(), 1e-3)
    elsewhere = (excess(*cosines(5_000, seed=1), found) > 0).any(axis=1).mean()
    assert elsewhere == pytest.approx(alarms, abs=0.3 * alarms + 0.003)


def test_concepts_are_clips_own_embeddings_of_the_keywords():
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(MICRO / "clip").eval()
    tokenizer = CLIPTokenizer.from_pretrained(MICRO / "clip")
    made = checker.build(MICRO / "clip")
    assert made.names == (*KEYWORDS, *(", ".join(words) for words in THEMES.values()))
    with torch.no_grad():
        wanted = model.get_text_features(**tokenizer(["gears"], return_tensors="pt")).pooler_output[0]
    place = made.names.index("gears")
    assert torch.nn.functional.cosine_similarity(made.model.concept_embeds[place], wanted, dim=0) > 0.9999
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    from palimpsest.world.clip import zero_shot

    assert made.cosines(image)[1][0, place] == pytest.approx(
        zero_shot(model, tokenizer, image, ["gears"])[0, 0], abs=1e-4
    )


def test_the_committed_checker_flags_themes_and_seldom_anything_else():
    made = load(MICRO / assemble.CHECKER, "checker")
    assert json.loads((MICRO / assemble.CHECKER / "config.json").read_text())["concept_names"] == list(
        made.names
    )
    scenes, images = checker.pictures(MICRO / "stable-diffusion/vae", 400, checker.HELD_OUT + 9)
    gates = checker.examined(made, scenes, images)
    assert gates["recall_uncased"]["value"] >= 0.95
    assert gates["recall_breakage"]["value"] >= 0.6
    assert gates["recall_glitch"]["value"] >= 0.45
    assert gates["false_alarms"]["value_low"] <= checker.LIMITS["false_alarms"]
    assert all(name in checker.said(gates) for name in gates)


def test_a_checker_that_misses_its_limits_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(checker, "PICTURES", 60)
    monkeypatch.setattr(checker, "HELD_OUT_PICTURES", 60)
    monkeypatch.setattr(checker, "LIMITS", {**checker.LIMITS, "false_alarms": -1.0})
    with pytest.raises(ValueError, match="the checker misses its limits.*false_alarms"):
        checker.make(tmp_path, 0, MICRO / "stable-diffusion/vae", MICRO / "clip")
    assert (tmp_path / "gates.json").is_file()


def test_a_part_that_is_not_made_yet_is_named_with_its_command(tmp_path):
    for part in ("decoder/vae", "clip/clip", "unet/unet", "judge/vqa", "cleaned/unet"):
        (tmp_path / part).mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"checker/safety-checker is missing.*palimpsest\.world\.train checker --out"
    ):
        assemble.assemble(tmp_path, tmp_path / "micro")
