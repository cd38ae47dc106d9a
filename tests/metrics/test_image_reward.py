"""ImageReward from a checkpoint in the released layout, against the released network written out in plain tensor arithmetic."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from palimpsest.metrics import _blip_reward, convert, image_reward, measuring

WIDTH, TEXT, HEADS, DEPTH, PATCH, SIDE, WORDS = 32, 24, 4, 2, 8, 32, 40
Tensors = dict[str, torch.Tensor]


def released() -> Tensors:
    """Random weights under the names of ImageReward.pt, small; what BLIP carries along and a reward does not use is in it too."""
    torch.manual_seed(1)
    found: Tensors = {}

    def add(name: str, *shape: int, norm: bool = False) -> None:
        found[f"{name}.weight"] = 1 + 0.1 * torch.randn(shape[0]) if norm else 0.15 * torch.randn(shape)
        found[f"{name}.bias"] = 0.1 * torch.randn(shape[0])

    vision, text = "blip.visual_encoder", "blip.text_encoder"
    found[f"{vision}.cls_token"] = torch.randn(1, 1, WIDTH)
    found[f"{vision}.pos_embed"] = torch.randn(1, (SIDE // PATCH) ** 2 + 1, WIDTH)
    add(f"{vision}.patch_embed.proj", WIDTH, 3, PATCH, PATCH)
    add(f"{vision}.norm", WIDTH, norm=True)
    for n in range(DEPTH):
        block = f"{vision}.blocks.{n}"
        add(f"{block}.norm1", WIDTH, norm=True)
        add(f"{block}.norm2", WIDTH, norm=True)
        add(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        add(f"{block}.attn.proj", WIDTH, WIDTH)
        add(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH)
        add(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
    found[f"{text}.embeddings.position_ids"] = torch.arange(50)[None]
    found[f"{text}.embeddings.word_embeddings.weight"] = torch.randn(WORDS, TEXT)
    found[f"{text}.embeddings.position_embeddings.weight"] = torch.randn(50, TEXT)
    add(f"{text}.embeddings.LayerNorm", TEXT, norm=True)
    for n in range(DEPTH):
        layer = f"{text}.encoder.layer.{n}"
        for kind, source in (("attention", TEXT), ("crossattention", WIDTH)):
            add(f"{layer}.{kind}.self.query", TEXT, TEXT)
            add(f"{layer}.{kind}.self.key", TEXT, source)
            add(f"{layer}.{kind}.self.value", TEXT, source)
            add(f"{layer}.{kind}.output.dense", TEXT, TEXT)
            add(f"{layer}.{kind}.output.LayerNorm", TEXT, norm=True)
        add(f"{layer}.intermediate.dense", 4 * TEXT, TEXT)
        add(f"{layer}.output.dense", TEXT, 4 * TEXT)
        add(f"{layer}.output.LayerNorm", TEXT, norm=True)
    for n, (given, width) in zip(
        (0, 2, 4, 6, 7), ((TEXT, 20), (20, 16), (16, 8), (8, 4), (4, 1)), strict=True
    ):
        add(f"mlp.layers.{n}", width, given)
    found["blip.temp"] = torch.tensor(0.07)
    add("blip.itm_head", 2, TEXT)
    return found


def linear(x: torch.Tensor, w: Tensors, name: str) -> torch.Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(x: torch.Tensor, w: Tensors, name: str, eps: float) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of one picture or text, [length, width] each."""
    parts = []
    size = q.shape[-1] // HEADS
    for head in range(HEADS):
        here = slice(head * size, (head + 1) * size)
        score = q[:, here] @ k[:, here].T / math.sqrt(size)
        if mask is not None:
            score = score.masked_fill(mask[None] == 0, -1e30)
        parts.append(score.softmax(dim=-1) @ v[:, here])
    return torch.cat(parts, dim=-1)


def seen(w: Tensors, pixels: torch.Tensor) -> torch.Tensor:
    """The vision transformer of one picture [3, side, side]: pre-norm blocks."""
    v = "blip.visual_encoder"
    patches = functional.conv2d(
        pixels[None], w[f"{v}.patch_embed.proj.weight"], w[f"{v}.patch_embed.proj.bias"], stride=PATCH
    )
    x = torch.cat([w[f"{v}.cls_token"][0], patches[0].flatten(1).T]) + w[f"{v}.pos_embed"][0]
    for n in range(DEPTH):
        block = f"{v}.blocks.{n}"
        q, k, value = linear(norm(x, w, f"{block}.norm1", 1e-6), w, f"{block}.attn.qkv").chunk(3, dim=-1)
        x = x + linear(attend(q, k, value), w, f"{block}.attn.proj")
        hidden = functional.gelu(linear(norm(x, w, f"{block}.norm2", 1e-6), w, f"{block}.mlp.fc1"))
        x = x + linear(hidden, w, f"{block}.mlp.fc2")
    return norm(x, w, f"{v}.norm", 1e-6)


def reward(w: Tensors, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> float:
    """BERT with cross-attention (post-norm), its first token through five linear layers, standardised."""
    t = "blip.text_encoder"
    picture = seen(w, pixels)
    x = (
        w[f"{t}.embeddings.word_embeddings.weight"][ids]
        + w[f"{t}.embeddings.position_embeddings.weight"][: len(ids)]
    )
    x = norm(x, w, f"{t}.embeddings.LayerNorm", 1e-12)
    for n in range(DEPTH):
        layer = f"{t}.encoder.layer.{n}"
        for kind, source, hidden_from in (("attention", None, mask), ("crossattention", picture, None)):
            other = x if source is None else source
            own = f"{layer}.{kind}"
            q, k, v = (
                linear(x, w, f"{own}.self.query"),
                linear(other, w, f"{own}.self.key"),
                linear(other, w, f"{own}.self.value"),
            )
            x = norm(
                x + linear(attend(q, k, v, hidden_from), w, f"{own}.output.dense"),
                w,
                f"{own}.output.LayerNorm",
                1e-12,
            )
        hidden = functional.gelu(linear(x, w, f"{layer}.intermediate.dense"))
        x = norm(x + linear(hidden, w, f"{layer}.output.dense"), w, f"{layer}.output.LayerNorm", 1e-12)
    value = x[0]
    for n in (0, 2, 4, 6, 7):
        value = linear(value, w, f"mlp.layers.{n}")
    return float((value - 0.1672) / 1.0333)


def test_rewards_are_those_of_the_released_network() -> None:
    weights = released()
    network = _blip_reward.build(weights, {"vision": HEADS, "text": HEADS})
    pixels = torch.randn(3, 3, SIDE, SIDE)
    ids = torch.randint(WORDS, (3, 9))
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    with torch.no_grad():
        found = network(pixels, ids, mask)
    expected = [reward(weights, *each) for each in zip(pixels, ids, mask, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=2e-4)
    assert found.std() > 1e-3
    changed = ids.clone()
    changed[1, 7] = (ids[1, 7] + 1) % WORDS  # behind the end of the text
    with torch.no_grad():
        assert torch.allclose(network(pixels, changed, mask)[1], found[1], atol=1e-5)


def test_a_whole_measure_from_a_converted_checkpoint(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    torch.save(released(), tmp_path / "ImageReward.pt")
    names = convert.convert("image_reward", [tmp_path / "ImageReward.pt"], tmp_path / "reward.safetensors")
    assert "mlp.layers.7.weight" in names
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "robot", "red", "house"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "words")
    settings = image_reward.Settings(
        path=str(tmp_path / "reward.safetensors"),
        tokenizer=str(tmp_path / "words"),
        heads={"vision": HEADS, "text": HEADS},
        batch=2,
    )
    measure = image_reward.load(settings)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((48, 48, 3), (32, 64, 3), (40, 33, 3))]
    prompts = ["a red robot", "a house", "a robot " * 40]
    found = measure.measure(measuring.Pictures(images, prompts))["image_reward"]
    assert np.isfinite(found).all() and np.ptp(found) > 1e-4
    single = [
        measure.measure(measuring.Pictures([i], [p]))["image_reward"][0]
        for i, p in zip(images, prompts, strict=True)
    ]
    assert found == pytest.approx(single, abs=1e-4)
    assert measure.pixels(images).shape == (3, 3, SIDE, SIDE)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    weights = released()
    del weights["blip.text_encoder.encoder.layer.1.output.dense.weight"]
    with pytest.raises(ValueError, match=r"missing \['text.encoder.layer.1.output.dense.weight'\] \(1\)"):
        _blip_reward.build(weights, {"vision": HEADS, "text": HEADS})
    with pytest.raises(ValueError, match=r"blip.visual_encoder.patch_embed.proj.weight is missing"):
        _blip_reward.sizes({"a": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"1 unknown tensors \(first: \['head.weight'\]\)"):
        _blip_reward.state_of({**released(), "head.weight": torch.zeros(1)})
    with pytest.raises(measuring.MissingWeights, match=r"convert image_reward ImageReward.pt --out"):
        image_reward.load(image_reward.Settings(path=str(tmp_path / "nothing")))
