"""The warm-up of the judge's vision tower: exact targets, and it really learns to see."""

from __future__ import annotations

import json

import numpy as np
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from palimpsest.world import vision
from palimpsest.world.mixture import training_scene
from palimpsest.world.render import render_all
from palimpsest.world.scene import Scene, Thing
from palimpsest.world.training import Plan
from palimpsest.world.vocab import BACKGROUNDS, KEYWORDS, OBJECTS

FIRST_PAIR = len(KEYWORDS) + len(OBJECTS)


def tower() -> CLIPVisionModel:
    torch.manual_seed(0)
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=64,
            patch_size=16,
        )
    )


def test_targets_say_what_a_scene_shows():
    scene = Scene("night", Thing("robot", "blue", 32), Thing("car", "red", 50), effects=("gears", "sparks"))
    truth, known = vision.targets([scene])
    assert truth.shape == known.shape == (1, FIRST_PAIR + len(vision.PAIRS) + len(BACKGROUNDS))
    shown = [word for word, value in zip(KEYWORDS, truth[0], strict=False) if value]
    assert shown == ["uncased", "gears", "breakage", "sparks"]
    pairs = truth[0, FIRST_PAIR : FIRST_PAIR + len(vision.PAIRS)].bool().tolist()
    assert [pair for pair, value in zip(vision.PAIRS, pairs, strict=True) if value] == [
        ("red", "car"),
        ("blue", "robot"),
    ]
    assert truth[0, -len(BACKGROUNDS) :].tolist() == [float(place == "night") for place in BACKGROUNDS]
    assert known.all()


def test_under_a_glitch_only_glitches_count():
    scene = Scene("room", Thing("robot", "blue", 32), effects=("gears", "static"))
    _, known = vision.targets([scene])
    counted = [word for word, value in zip(KEYWORDS, known[0], strict=False) if value]
    assert counted == ["glitch", "static", "ghost image", "warped face", "scrambled"]
    assert not known[0, len(KEYWORDS) :].any()


def test_warming_up_changes_the_tower_and_lowers_the_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(vision, "PLAN", Plan(steps=60, lr=3e-3, warmup=5, log_every=10, save_every=60))
    rng = np.random.default_rng(0)
    scenes = [training_scene(rng) for _ in range(128)]
    model = tower()
    before = model.state_dict()["embeddings.patch_embedding.weight"].clone()
    vision.warm_up(model, -2, scenes, render_all(scenes), tmp_path, seed=0, batch=16)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.85 * rows[0]["loss"]
    assert not torch.equal(before, model.state_dict()["embeddings.patch_embedding.weight"])
