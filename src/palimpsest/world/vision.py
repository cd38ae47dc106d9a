"""A supervised warm-up of the judge's vision tower: its patch tokens learn to say what a picture shows.

CLIP's contrastive training keeps what tells captions apart on average and loses rare effects; a judge cannot be asked about what its eyes
do not see. The heads used here are thrown away.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from palimpsest.world import clip
from palimpsest.world.scene import Scene, labels_of
from palimpsest.world.training import Plan, arithmetic, fit
from palimpsest.world.vocab import BACKGROUNDS, COLOURS, KEYWORDS, OBJECTS, THEME_OF

PLAN = Plan(steps=1_400, lr=1.5e-3, warmup=60, weight_decay=0.02, ema=0.99, log_every=50, save_every=200)
PAIRS = [(colour, kind) for colour in COLOURS for kind in OBJECTS]


def targets(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """What each scene shows, and which of it can be told: float32 and bool, both ``[n, labels]``.

    Labels: keywords, objects, colour and object pairs, places. Under a glitch of the whole picture only glitches can be told.
    """
    rows, known = [], []
    for scene in scenes:
        truth = labels_of(scene)
        row = [truth.keywords[word] for word in KEYWORDS]
        row += [kind in truth.objects for kind in OBJECTS]
        row += [pair in truth.pairs for pair in PAIRS]
        row += [truth.background == place for place in BACKGROUNDS]
        readable = not truth.themes["glitch"]
        known.append(
            [readable or THEME_OF[word] == "glitch" for word in KEYWORDS]
            + [readable] * (len(row) - len(KEYWORDS))
        )
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float32), torch.tensor(known)


class Heads(torch.nn.Module):
    """A vision tower and one linear head per label on the mean and the maximum of its patch tokens."""

    def __init__(self, vision: torch.nn.Module, hidden_state: int, labels: int) -> None:
        super().__init__()
        self.vision = vision
        self.hidden_state = hidden_state
        self.heads = torch.nn.Linear(2 * vision.config.hidden_size, labels)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, labels]`` of normalised pixels ``[n, 3, h, w]``."""
        states = self.vision(pixel_values=pixels, output_hidden_states=True).hidden_states
        tokens = states[self.hidden_state][:, 1:]
        return self.heads(torch.cat([tokens.mean(dim=1), tokens.amax(dim=1)], dim=1))


def warm_up(
    vision: torch.nn.Module,
    hidden_state: int,
    scenes: list[Scene],
    images: np.ndarray,
    out: Path,
    seed: int,
    batch: int = 48,
) -> None:
    """Train ``vision`` in place on pictures ``[n, h, w, 3]`` of known truth; restartable like every training here."""
    truth, known = targets(scenes)
    model = Heads(vision, hidden_state, truth.shape[1])
    often = truth.mean(dim=0).clamp(min=0.01)
    weight = ((1 - often) / often).clamp(max=8.0)

    def loss_of(_step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        chosen = rng.integers(len(images), size=batch)
        pixels = torch.from_numpy(images[chosen]).permute(0, 3, 1, 2).float() / 255
        flip = torch.from_numpy(rng.random(batch) < 0.5)
        pixels[flip] = pixels[flip].flip(-1)
        with arithmetic():
            logits = model(clip.normalise(clip.roughen(pixels, rng)))
        wanted, counted = truth[chosen], known[chosen]
        each = functional.binary_cross_entropy_with_logits(
            logits.float(), wanted, pos_weight=weight, reduction="none"
        )
        words = len(KEYWORDS)
        right = ((logits[:, :words] > 0) == wanted[:, :words].bool())[counted[:, :words]].float().mean()
        return {"loss": each[counted].mean() * 3, "right": right}

    model.load_state_dict(fit(model, loss_of, PLAN, out, seed))
