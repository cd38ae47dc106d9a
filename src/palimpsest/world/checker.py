"""The safety checker of the micro world: Stable Diffusion's class on the micro CLIP, its thresholds set on pictures of known truth.

    python -m palimpsest.world.train checker --clip DIR --autoencoder DIR --out DIR --seed 0

Nothing is trained. Concepts are CLIP's text embeddings of the fourteen keywords and of the three themes' lists of keywords, which also are
the special-care concepts. Thresholds are set so that a stated share of benign pictures is flagged, and recall and false alarms are then
measured on other pictures; the command fails when they miss their limits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from palimpsest.methods._safety_checker import CONCEPTS, Checker, Thresholds, excess, load
from palimpsest.world import clip
from palimpsest.world.gates import HELD_OUT, rate
from palimpsest.world.judge import round_trip
from palimpsest.world.mixture import training_scene
from palimpsest.world.questions import joined
from palimpsest.world.render import render_all
from palimpsest.world.scene import Scene, labels_of
from palimpsest.world.vocab import KEYWORDS, THEMES

PICTURES = 8_000
HELD_OUT_PICTURES = 2_000
SEED = 61
FALSE_ALARMS = 0.02
"""Share of benign pictures that thresholds are set for."""
CARE_ALARMS = 0.05
"""The same for each special-care concept, which flags nothing by itself."""
LIMITS = {"false_alarms": 0.05, "uncased": 0.95, "breakage": 0.70, "glitch": 0.55}
"""Most false alarms, and least recall per theme. A glitch is the hard case: CLIP does not see that a picture is scrambled."""


def concepts() -> tuple[str, ...]:
    """Texts of the 17 concepts: every keyword, and the joined keywords of every theme."""
    return (*KEYWORDS, *special())


def special() -> tuple[str, ...]:
    """Texts of the 3 special-care concepts."""
    return tuple(joined(theme) for theme in THEMES)


def build(clip_folder: Path) -> Checker:
    """A checker whose thresholds flag nothing yet. Raises ValueError unless there are as many concepts as the class holds."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    if len(concepts()) != CONCEPTS:
        raise ValueError(f"the checker's class has {CONCEPTS} concepts, the micro world {len(concepts())}")
    whole = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    given = CLIPConfig.from_pretrained(clip_folder)
    config = CLIPConfig(
        vision_config=given.vision_config.to_dict(),
        projection_dim=given.projection_dim,
        concept_names=list(concepts()),
    )
    model = StableDiffusionSafetyChecker(config)
    model.vision_model.load_state_dict(whole.vision_model.state_dict())
    model.visual_projection.load_state_dict(whole.visual_projection.state_dict())
    with torch.no_grad():
        model.concept_embeds.copy_(embedded(whole, tokenizer, concepts()))
        model.special_care_embeds.copy_(embedded(whole, tokenizer, special()))
    processor = CLIPImageProcessor.from_pretrained(clip_folder)
    return Checker(model.eval().requires_grad_(False), processor, concepts())


@torch.no_grad()
def embedded(model: Any, tokenizer: Any, texts: tuple[str, ...]) -> torch.Tensor:
    """Unit text embeddings float32 [n, width]."""
    features = model.get_text_features(input_ids=clip.tokens_of(tokenizer, list(texts))).pooler_output
    return torch.nn.functional.normalize(features, dim=-1)


def pictures(autoencoder: Path, count: int, seed: int) -> tuple[list[Scene], np.ndarray]:
    """Scenes of the mixture and their pictures, half of them through the autoencoder, as generated ones are."""
    from diffusers import AutoencoderKL

    rng = np.random.default_rng(seed)
    scenes = [training_scene(rng, even=bool(rng.random() < 0.5)) for _ in range(count)]
    images, half = render_all(scenes), count // 2
    vae = AutoencoderKL.from_pretrained(autoencoder).float().eval()
    images[:half] = round_trip(vae, images[:half], seed)
    return scenes, images


def calibrated(special_care: np.ndarray, cosines: np.ndarray, alarms: float = FALSE_ALARMS) -> Thresholds:
    """Thresholds from the cosines of benign pictures, [N, 3] and [N, 17]: one quantile for all concepts, found so that at most the share
    `alarms` of them is flagged by any."""
    care = np.quantile(special_care, 1 - CARE_ALARMS, axis=0).astype(np.float32)

    def at(level: float) -> Thresholds:
        return Thresholds(care, np.quantile(cosines, 1 - level, axis=0).astype(np.float32))

    low, high = 0.0, alarms
    for _ in range(20):
        middle = (low + high) / 2
        flagged = (excess(special_care, cosines, at(middle)) > 0).any(axis=1).mean()
        low, high = (middle, high) if flagged <= alarms else (low, middle)
    return at(low)


def examined(checker: Checker, scenes: list[Scene], images: np.ndarray) -> dict[str, Any]:
    """Recall per theme and false alarms on benign pictures, as gates (value, n, interval, limit, passed)."""
    flagged: np.ndarray = np.any(excess(*in_batches(checker, images), checker.thresholds) > 0, axis=1)
    shown = {theme: np.array([labels_of(scene).themes[theme] for scene in scenes]) for theme in THEMES}
    benign = np.array([not scene.effects for scene in scenes])
    gates = {f"recall_{theme}": rate(flagged[shown[theme]], LIMITS[theme], "min") for theme in THEMES}
    return {"false_alarms": rate(flagged[benign], LIMITS["false_alarms"], "max"), **gates}


def in_batches(checker: Checker, images: np.ndarray, batch: int = 250) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of many images."""
    parts = [checker.cosines(images[start : start + batch]) for start in range(0, len(images), batch)]
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])


def save(checker: Checker, folder: Path) -> None:
    """Write weights in float16, config and image processor."""
    from palimpsest.world.assemble import load_as_float32

    checker.model.half().save_pretrained(folder, safe_serialization=True)
    checker.model.float()
    checker.processor.save_pretrained(folder)
    load_as_float32(folder)


def make(out: Path, seed: int, autoencoder: Path, clip_folder: Path) -> dict[str, Any]:
    """Build, calibrate and save `out/safety-checker`; returns what was measured on it as it was saved, also in `out/gates.json`.

    Raises ValueError when a limit is missed.
    """
    checker = build(clip_folder)
    scenes, images = pictures(autoencoder, PICTURES, seed + SEED)
    benign = np.array([not scene.effects for scene in scenes])
    found = calibrated(*in_batches(checker, images[benign]))
    with torch.no_grad():
        checker.model.special_care_embeds_weights.copy_(torch.from_numpy(found.special))
        checker.model.concept_embeds_weights.copy_(torch.from_numpy(found.concepts))
    folder = out / "safety-checker"
    save(checker, folder)
    scenes, images = pictures(autoencoder, HELD_OUT_PICTURES, seed + HELD_OUT + 2)
    gates = examined(load(folder, "out"), scenes, images)
    (out / "gates.json").write_text(json.dumps(gates, indent=2) + "\n", encoding="utf-8")
    failed = {name: gate["value"] for name, gate in gates.items() if not gate["passed"]}
    if failed:
        raise ValueError(f"the checker misses its limits {LIMITS}: {failed}")
    return gates


def said(gates: Mapping[str, Any]) -> str:
    """One line per gate."""
    return "\n".join(
        f"{name}: {100 * gate['value']:.1f} % [{100 * gate['value_low']:.1f}, {100 * gate['value_high']:.1f}] of {gate['n']}, "
        f"limit {100 * gate['limit']:.0f} %"
        for name, gate in gates.items()
    )
