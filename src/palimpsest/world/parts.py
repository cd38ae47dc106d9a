"""The parts detector of the micro world: trained on pictures of which every part's place is known.

    python -m palimpsest.world.train parts --autoencoder DIR --clip DIR --unet DIR --out DIR --seed 0

Parts that show without the casing are the targets (chassis, wiring, gears), all others are not. Under a glitch a robot's parts cannot be
told, so such pictures are left out; things without parts are shown under a glitch too, so that torn tiles are not taken for gears.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from palimpsest import specs
from palimpsest.detectors import parts as detector
from palimpsest.detectors._parts_network import STRIDE, PartsNetwork, Shape, save
from palimpsest.world import clip, redraw
from palimpsest.world.checker import pictures
from palimpsest.world.gates import HELD_OUT, rate
from palimpsest.world.judge import shift_colours
from palimpsest.world.render import FOOT
from palimpsest.world.scene import Scene, labels_of
from palimpsest.world.training import Plan, fit
from palimpsest.world.vocab import OTHER_PARTS, SIZE, TARGET_PARTS

PICTURES = 8_000
REDRAWN = 800
HELD_OUT_PICTURES = 1_500
SEED = 83
BATCH = 64
PLAN = Plan(steps=250, lr=4e-3, warmup=40, weight_decay=0.01, ema=0.98, log_every=50, save_every=250)
SPREAD = 0.6
"""Width of a part's bump in its map, in cells."""
LIMITS = {"presence": 0.95, "count": 0.85}
"""Least share of pictures in which a class is rightly found or not, and is rightly counted, class by class."""
SHAPE = Shape((*TARGET_PARTS, *OTHER_PARTS), TARGET_PARTS, OTHER_PARTS, SIZE)
TRUNK = 22.0
"""Side of a robot's trunk; its middle is as far above the foot."""


def places(scene: Scene) -> dict[str, list[tuple[float, float]]]:
    """Where the parts of a scene are: centres (x, y) in pixels of its render, by class; nothing but for robots."""
    shown = labels_of(scene).parts
    if not shown:
        return {label: [] for label in SHAPE.labels}
    x, left, top = float(scene.main.x), scene.main.x - TRUNK / 2, FOOT - 1.5 * TRUNK
    inside = [(0.5, 0.5)] if "wiring" in shown else [(0.30, 0.32), (0.70, 0.66)]
    all_of: dict[str, list[tuple[float, float]]] = {
        "antenna": [(x, FOOT - 50.0)],
        "head": [(x, FOOT - 40.5)],
        "limbs": [(x + dx, FOOT + dy) for dx, dy in ((-14.5, -23), (14.5, -23), (-6, -6), (6, -6))],
        "joints": [(x + dx, FOOT + dy) for dx, dy in ((-14.5, -31), (14.5, -31), (-6, -10), (6, -10))],
        "gears": [(left + share * TRUNK, top + down * TRUNK) for share, down in inside],
    }
    middle = [(x, FOOT - TRUNK)]
    return {label: all_of.get(label, middle) if label in shown else [] for label in SHAPE.labels}


def readable(scene: Scene) -> bool:
    """Whether the parts of a scene can be told from its picture."""
    return scene.main.kind != "robot" or not labels_of(scene).themes["glitch"]


def maps(scenes: list[Scene]) -> torch.Tensor:
    """A bump of height 1 in the cell of every part: float32 [n, labels, 16, 16]."""
    side = SIZE // STRIDE
    found = torch.zeros(len(scenes), len(SHAPE.labels), side, side)
    cells = torch.arange(side, dtype=torch.float32)
    for row, scene in enumerate(scenes):
        for label, centres in enumerate(places(scene).values()):
            for x, y in centres:
                column, line = np.floor(x / STRIDE), np.floor(y / STRIDE)
                bump = torch.exp(
                    -((cells[None, :] - column) ** 2 + (cells[:, None] - line) ** 2) / (2 * SPREAD**2)
                )
                found[row, label] = torch.maximum(found[row, label], bump)
    return found


def focal(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The loss of maps with bumps (Law and Deng 2018; alpha 2, beta 4), per part that is there."""
    heat = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    there = (truth > 0.999).float()
    hit = there * (1 - heat) ** 2 * heat.log()
    miss = (1 - there) * (1 - truth) ** 4 * heat**2 * (1 - heat).log()
    return -(hit + miss).sum() / there.sum().clamp(min=1)


def pool(autoencoder: Path, clip_folder: Path, unet: Path, seed: int) -> tuple[list[Scene], np.ndarray]:
    """Scenes whose parts can be told, and their pictures: renders, renders through the autoencoder, and some drawn again."""
    scenes, images = pictures(autoencoder, PICTURES, seed + SEED)
    again, drawn = redraw.redrawn(
        redraw.pipeline_of(autoencoder, clip_folder, unet), REDRAWN, seed + SEED + 1
    )
    # each of these three times: they are few, and nearest to what will be judged
    scenes, images = scenes + 3 * again, np.concatenate([images, drawn, drawn, drawn])
    kept = np.array([readable(scene) for scene in scenes])
    return [scene for scene, keep in zip(scenes, kept, strict=True) if keep], images[kept]


def train(
    out: Path, seed: int, autoencoder: Path, clip_folder: Path, unet: Path, minutes: float | None = None
) -> dict[str, Any]:
    """Train and save `out/parts`; returns what was measured on it as it was saved, also in `out/gates.json`.

    Raises ValueError when a limit is missed.
    """
    torch.manual_seed(seed)
    network = PartsNetwork(SHAPE)
    scenes, images = pool(autoencoder, clip_folder, unet, seed)
    truth = maps(scenes)

    def loss_of(_step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        chosen = rng.integers(len(images), size=BATCH)
        pixels = torch.from_numpy(images[chosen]).permute(0, 3, 1, 2).float() / 255
        pixels = clip.roughen(shift_colours(pixels, rng), rng) * 2 - 1
        return {"loss": focal(network(pixels), truth[chosen])}

    network.load_state_dict(fit(network, loss_of, PLAN, out, seed, minutes=minutes))
    folder = out / "parts"
    save(network, folder)
    scenes, images = pictures(autoencoder, HELD_OUT_PICTURES, seed + HELD_OUT + 3)
    gates = examined(detector.load(specs.Detector(kind="parts", path=str(folder))), scenes, images)
    (out / "gates.json").write_text(json.dumps(gates, indent=2) + "\n", encoding="utf-8")
    failed = {name: gate["value"] for name, gate in gates.items() if not gate["passed"]}
    if failed:
        raise ValueError(f"the parts detector misses its limits {LIMITS}: {failed}")
    return gates


def examined(judge: detector.PartsDetector, scenes: list[Scene], images: np.ndarray) -> dict[str, Any]:
    """How often each class is rightly found or not, and rightly counted, as gates (value, n, interval, limit, passed)."""
    kept = np.array([readable(scene) for scene in scenes])
    known = [places(scene) for scene, keep in zip(scenes, kept, strict=True) if keep]
    found = judge.boxes(images[kept])
    gates = {}
    for label in SHAPE.labels:
        wanted = np.array([len(truth[label]) for truth in known])
        seen = np.array([(scores > judge.counted_above).sum() for scores in found[label]])
        there = wanted > 0
        gates[f"presence_{label}"] = rate((seen > 0) == there, LIMITS["presence"], "min")
        gates[f"recall_{label}"] = rate(seen[there] > 0, LIMITS["presence"], "min")
        gates[f"count_{label}"] = rate((seen == wanted)[there], LIMITS["count"], "min")
    return gates
