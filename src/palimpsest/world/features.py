"""Train the micro world's picture network, whose activations serve FID, KID and a perceptual distance.

    python -m palimpsest.world.train features --out DIR --seed 0

It learns to say what a render shows: keywords, objects, coloured objects, places. On other renders it then has to know these, to tell a
more damaged picture from a less damaged one, and to keep sets of pictures apart; training fails when a limit is missed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from palimpsest.metrics import _micro_network as network
from palimpsest.world import clip
from palimpsest.world.gates import HELD_OUT, rate
from palimpsest.world.mixture import training_scene
from palimpsest.world.render import render_all
from palimpsest.world.scene import Scene
from palimpsest.world.training import Plan, fit
from palimpsest.world.vision import targets
from palimpsest.world.vocab import BACKGROUNDS, KEYWORDS, OBJECTS

POOL = 10_000
HELD_OUT_PICTURES = 1_200
SEED = 83
FOLDER = "features"
PLAN = Plan(steps=900, lr=3e-3, warmup=40, weight_decay=0.01, ema=0.99, log_every=50, save_every=300)
LIMITS = {"place": 0.97, "objects": 0.88, "keywords": 0.90, "more_damaged_is_farther": 0.95}
"""Least accuracy per group of labels, and least share of pairs of damages put in the right order."""
DAMAGES = ("noise", "blur", "fade", "patch")


class Teller(torch.nn.Module):
    """The network and a linear head per label, which is thrown away."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.network = network.Network()
        self.heads = torch.nn.Linear(network.FEATURES, labels)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.heads(functional.relu(self.network(pixels)))


def scenes_of(count: int, seed: int) -> list[Scene]:
    """Scenes of the mixture; every kind of object is as often as any other in half of them."""
    rng = np.random.default_rng(seed)
    return [training_scene(rng, even=bool(rng.random() < 0.5)) for _ in range(count)]


def train(out: Path, seed: int, minutes: float | None = None, batch: int = 64) -> dict[str, Any]:
    """Train and save `out/features`; returns the gates, also in `out/gates.json`. Raises ValueError when a limit is missed."""
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    scenes = scenes_of(POOL, seed + SEED)
    truth, known = targets(scenes)
    images = render_all(scenes)
    often = truth.mean(dim=0).clamp(min=0.01)
    weight = ((1 - often) / often).clamp(max=8.0)
    teller = Teller(truth.shape[1])

    def loss_of(_step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        chosen = rng.integers(len(images), size=batch)
        pixels = network.pixels_of(images[chosen])
        flip = torch.from_numpy(rng.random(batch) < 0.5)
        pixels[flip] = pixels[flip].flip(-1)
        logits = teller(clip.roughen(pixels, rng))
        each = functional.binary_cross_entropy_with_logits(
            logits, truth[chosen], pos_weight=weight, reduction="none"
        )
        return {"loss": each[known[chosen]].mean()}

    teller.load_state_dict(fit(teller, loss_of, PLAN, out, seed, minutes=minutes))
    rescale(teller, images[:1000])
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in teller.network.state_dict().items()}
    save_file(weights, folder / network.WEIGHTS)
    teller.network = network.load(folder)
    gates = examined(teller.eval(), seed)
    (out / "gates.json").write_text(json.dumps(gates, indent=2) + "\n", encoding="utf-8")
    failed = {name: gate["value"] for name, gate in gates.items() if not gate["passed"]}
    if failed:
        raise ValueError(f"the picture network misses its limits {LIMITS}: {failed}")
    return gates


@torch.no_grad()
def rescale(teller: Teller, images: np.ndarray) -> None:
    """Give features a mean square of 1, in place; what the heads say stays the same, for they follow a ReLU.

    KID's kernel is (x.y / d + 1)^3, in which features of another size would drown the 1.
    """
    found = teller.network(network.pixels_of(images))
    size = float(found.square().mean().sqrt())
    teller.network.embed.weight /= size
    teller.network.embed.bias /= size
    teller.heads.weight *= size


@torch.no_grad()
def examined(teller: Teller, seed: int) -> dict[str, Any]:
    """Accuracy on held-out renders per group of labels, and order of damages, as gates (value, n, interval, limit, passed).

    Objects and keywords are seldom there, so their accuracy is the mean of recall over those shown and not shown, drawn equally often.
    """
    scenes = scenes_of(HELD_OUT_PICTURES, seed + HELD_OUT + 3)
    images = render_all(scenes)
    truth, known = targets(scenes)
    logits = torch.cat([teller(network.pixels_of(part)) for part in np.array_split(images, 12)])
    words, things = len(KEYWORDS), len(OBJECTS)
    places = slice(truth.shape[1] - len(BACKGROUNDS), None)
    told = known[:, -1]
    right = (logits[:, places].argmax(dim=1) == truth[:, places].argmax(dim=1))[told]
    gates = {"place": rate(right.numpy(), LIMITS["place"], "min")}
    rng = np.random.default_rng(seed)
    for name, part in (("keywords", slice(0, words)), ("objects", slice(words, words + things))):
        said = _balanced(logits[:, part], truth[:, part], known[:, part], rng)
        gates[name] = rate(said, LIMITS[name], "min")
    order = damage_order(teller.network, images[:200], np.random.default_rng(seed + 1))
    return {
        **gates,
        "more_damaged_is_farther": rate(order, LIMITS["more_damaged_is_farther"], "min"),
    }


def _balanced(
    logits: torch.Tensor, truth: torch.Tensor, known: torch.Tensor, rng: np.random.Generator
) -> np.ndarray:
    """Whether the answer is right, for every label as often where it is true as where it is not: bool [n]."""
    found = []
    for label in range(truth.shape[1]):
        right = ((logits[:, label] > 0) == truth[:, label].bool()).numpy()
        yes = np.flatnonzero((known[:, label] & truth[:, label].bool()).numpy())
        no = np.flatnonzero((known[:, label] & ~truth[:, label].bool()).numpy())
        count = min(len(yes), len(no))
        found += [right[rng.permutation(yes)[:count]], right[rng.permutation(no)[:count]]]
    return np.concatenate(found)


def damaged(image: np.ndarray, kind: str, level: float, seed: int) -> np.ndarray:
    """A picture uint8 [h, w, 3] with a damage of a level in [0, 1]; equal seeds damage the same place in the same way."""
    rng, side = np.random.default_rng(seed), len(image)
    values = image.astype(np.float64)
    if kind == "noise":
        values += rng.normal(size=image.shape) * 80 * level
    elif kind == "blur":
        values = ndimage.gaussian_filter(values, (4 * level, 4 * level, 0))
    elif kind == "fade":
        values += (values.mean() - values) * level
    elif kind == "patch":
        x, y, size = *rng.integers(side // 2, size=2), round(side / 2 * level)
        values[y : y + size, x : x + size] = rng.integers(256, size=3)
    else:
        raise ValueError(f"damage {kind!r} does not exist; allowed: {DAMAGES}")
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def damage_order(model: network.Network, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whether the more damaged of two pictures is the farther one, for every picture and kind of damage: bool [n]."""
    original = model.activations(network.pixels_of(images))
    found = []
    for kind in DAMAGES:
        seeds = rng.integers(2**31, size=len(images))
        lows = rng.uniform(0.1, 0.5, size=len(images))
        near, far = (
            np.stack(
                [
                    damaged(image, kind, level, seed)
                    for image, level, seed in zip(images, levels, seeds, strict=True)
                ]
            )
            for levels in (lows, lows + 0.4)
        )
        gaps = [
            network.distance(original, model.activations(network.pixels_of(part))) for part in (near, far)
        ]
        found.append((gaps[1] > gaps[0]).numpy())
    return np.concatenate(found)
