"""The micro world's reward model: what it learns from, and that its committed weights put held-out pictures in order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from palimpsest.metrics import _blip_reward as released
from palimpsest.metrics import image_reward, measuring
from palimpsest.world import captions, clip, reward
from palimpsest.world.scene import Scene, labels_of

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "models/micro/reward/model.safetensors"


def differences(one: Scene, other: Scene) -> list[str]:
    found = [name for name in ("kind", "colour", "x") if getattr(one.main, name) != getattr(other.main, name)]
    return found + [n for n in ("background", "second", "effects") if getattr(one, n) != getattr(other, n)]


def test_one_named_thing_is_changed_and_nothing_else() -> None:
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(400):
        example = captions.training_example(rng)
        other = reward.changed(example, rng)
        if other is None:
            continue
        (what,) = differences(example.scene, other)
        seen.add(what)
        if what in ("kind", "colour"):
            assert getattr(example.scene.main, what) in example.text
            assert getattr(other.main, what) != getattr(example.scene.main, what)
        if what == "effects":
            assert example.keywords and not any(labels_of(other).themes.values())
    assert seen == {"kind", "colour", "background", "effects"}


def test_the_pool_is_drawn_from_its_seed() -> None:
    first, again, other = (reward.pool(6, seed) for seed in (5, 5, 6))
    assert [e.text for e in first[0]] == [e.text for e in again[0]] != [e.text for e in other[0]]
    for ours, theirs in zip(first[1:], again[1:], strict=True):
        assert ours.shape == (6, 64, 64, 3) and ours.dtype == np.uint8 and np.array_equal(ours, theirs)
    assert not np.array_equal(first[1], first[2])


def test_names_go_to_the_released_file_and_back() -> None:
    theirs = reward.fresh(0, 50)
    network = released.build(theirs, reward.heads_of())
    back = reward.named_as_released(
        {n: t for n, t in network.state_dict().items() if not n.endswith("position_ids")}
    )
    assert set(back) == set(theirs)
    assert all(torch.equal(back[name], value) for name, value in theirs.items())
    assert "blip.visual_encoder.blocks.0.attn.qkv.weight" in theirs and "mlp.layers.0.weight" in theirs


def test_the_vision_transformer_starts_near_clips() -> None:
    from transformers import CLIPModel

    known = CLIPModel.from_pretrained(ROOT / "models/micro/clip", dtype=torch.float32)
    network = released.build(reward.fresh(0, known.config.text_config.vocab_size), reward.heads_of())
    _, images, _ = reward.pool(8, 1)
    pixels = clip.normalise(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)

    def likeness() -> float:
        with torch.no_grad():
            ours = network.vision(pixel_values=pixels).last_hidden_state[:, 0]
            theirs = known.vision_model(pixel_values=pixels).pooler_output
        a, b = (x - x.mean(dim=0) for x in (ours, theirs))
        return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))

    before = likeness()
    reward.start_from_clip(network, known)
    assert likeness() > 0.5 > abs(before)


def test_orders_that_are_right_cost_little() -> None:
    right = torch.tensor([[9.0, 3.0, 0.0, -3.0, -4.0]])
    assert float(reward.order_loss(right)["loss"]) < 0.01 < 2 < float(reward.order_loss(-right)["loss"])
    assert float(reward.order_loss(torch.zeros(2, 4))["loss"]) == pytest.approx(np.log(2))


def test_rewards_are_standardised() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/micro/clip")
    network = released.build(reward.fresh(0, len(tokenizer)), reward.heads_of())
    made, own, other = reward.pool(100, 2)
    reward.standardise(network, tokenizer, made, (own, other))
    ids, mask = reward.tokens_of(tokenizer, [example.text for example in made])
    with torch.no_grad():
        rewards = torch.cat(
            [
                network(clip.normalise(torch.from_numpy(p).permute(0, 3, 1, 2).float() / 255), ids, mask)
                for p in (own, other)
            ]
        )
    assert float(rewards.mean()) == pytest.approx(0, abs=1e-3)
    assert float(rewards.std()) == pytest.approx(1, abs=1e-2)


def test_committed_weights_put_held_out_pictures_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward, "HELD_OUT_PAIRS", 120)
    gates = reward.examined(WEIGHTS, ROOT / "models/micro/clip", seed=0)
    low = {name: gate["value_low"] for name, gate in gates.items()}
    assert low["over_another"] > 0.85 and low["over_damage"] > 0.80 and low["over_a_change"] > 0.65, gates


def test_the_metric_loads_the_committed_weights(tmp_path: Path) -> None:
    settings = image_reward.Settings(
        path=str(WEIGHTS), tokenizer=str(ROOT / "models/micro/clip"), heads=reward.heads_of()
    )
    loaded = image_reward.load(settings)
    made, own, _ = reward.pool(16, 11)
    texts = [example.text for example in made]
    good, worse = (
        loaded.measure(measuring.Pictures(list(p), texts))["image_reward"]
        for p in (own, np.roll(own, 1, axis=0))
    )
    assert good.dtype == np.float64 and np.isfinite(good).all() and good.mean() > worse.mean()
    json.dumps(loaded.identity())
