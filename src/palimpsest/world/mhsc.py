"""The multi-headed safety classifier of the micro world: a head per theme on the micro CLIP.

    python -m palimpsest.world.train mhsc --clip DIR --autoencoder DIR --out DIR --seed 0

Trained as the original was: binary cross entropy, Adam, batches of 64 in which both answers come equally often. What it may be used for is
measured on held-out pictures; it sees no more than CLIP does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from palimpsest import specs
from palimpsest.detectors import _clip, _heads
from palimpsest.detectors import mhsc as detector
from palimpsest.world.checker import pictures
from palimpsest.world.gates import HELD_OUT, rate
from palimpsest.world.scene import Scene, labels_of
from palimpsest.world.vocab import THEMES

PICTURES = 8_000
HELD_OUT_PICTURES = 2_000
SEED = 71
EPOCHS = 31
BATCH = 64
LEARNING_RATE = 1e-3
LIMITS = {
    "recall_uncased": 0.95, "recall_breakage": 0.85, "recall_glitch": 0.80,
    "false_alarms_uncased": 0.03, "false_alarms_breakage": 0.06, "false_alarms_glitch": 0.10,
}  # fmt: skip
"""Least recall of a theme, and most pictures without it that are taken for it."""


def truths(scenes: list[Scene]) -> dict[str, np.ndarray]:
    """Which scenes show each theme: bool [n]."""
    return {theme: np.array([labels_of(scene).themes[theme] for scene in scenes]) for theme in THEMES}


def told(scenes: list[Scene], theme: str) -> np.ndarray:
    """Which scenes a head can be asked about: a glitch hides the other themes."""
    return np.array([theme == "glitch" or not labels_of(scene).themes["glitch"] for scene in scenes])


def fitted(features: torch.Tensor, truth: np.ndarray, seed: int) -> torch.nn.Sequential:
    """One head trained on embeddings [n, width] and the answers bool [n], in evaluation mode."""
    torch.manual_seed(seed)
    head = _heads.head(features.shape[1]).train()
    optimiser = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)
    rng, steps = np.random.default_rng(seed), EPOCHS * len(truth) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    sides = (np.flatnonzero(truth), np.flatnonzero(~truth))
    answers = torch.cat([torch.ones(BATCH // 2), torch.zeros(BATCH // 2)])
    for _ in range(steps):
        chosen = np.concatenate([rng.choice(side, BATCH // 2) for side in sides])
        loss = functional.binary_cross_entropy_with_logits(head(features[chosen])[:, 0], answers)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return head.eval()


def make(out: Path, seed: int, autoencoder: Path, clip_folder: Path) -> dict[str, Any]:
    """Train and save `out/mhsc`; returns what was measured on it as it was saved, also in `out/gates.json`.

    Raises ValueError when a limit is missed.
    """
    clip = _clip.load(str(clip_folder), None, "--clip", texts=False)
    scenes, images = pictures(autoencoder, PICTURES, seed + SEED)
    features = torch.cat(
        [clip.embed_images(part) for part in np.array_split(images, len(images) // 250)]
    ).clone()
    heads = {
        theme: fitted(
            features[torch.from_numpy(told(scenes, theme))], truth[told(scenes, theme)], seed + number
        )
        for number, (theme, truth) in enumerate(truths(scenes).items())
    }
    folder = out / "mhsc"
    _heads.save(
        heads, folder, {"clip": "the micro CLIP", "width": clip.width, "heads": list(heads)}, half=True
    )
    judge = detector.load(specs.Detector(kind="mhsc", path=str(folder), clip=str(clip_folder)))
    gates = examined(judge, *pictures(autoencoder, HELD_OUT_PICTURES, seed + HELD_OUT + 4))
    (out / "gates.json").write_text(json.dumps(gates, indent=2) + "\n", encoding="utf-8")
    failed = {name: gate["value"] for name, gate in gates.items() if not gate["passed"]}
    if failed:
        raise ValueError(f"the classifier misses its limits {LIMITS}: {failed}")
    return gates


def examined(judge: detector.HeadsJudge, scenes: list[Scene], images: np.ndarray) -> dict[str, Any]:
    """Recall and false alarms of every head at 0.5, as gates (value, n, interval, limit, passed)."""
    scores = judge.score(images, {})
    gates = {}
    for theme, truth in truths(scenes).items():
        said, asked = scores[theme] > 0.5, told(scenes, theme)
        recall, alarms = f"recall_{theme}", f"false_alarms_{theme}"
        gates[recall] = rate(said[asked & truth], LIMITS[recall], "min")
        gates[alarms] = rate(said[asked & ~truth], LIMITS[alarms], "max")
    return gates
