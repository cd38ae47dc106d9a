"""The safety checker of Stable Diffusion: loaded strictly, and its decision on cosines, written once for filter and calibration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CONCEPTS, SPECIAL = 17, 3
CARE = 0.01
WEIGHTS = "model.safetensors"
PROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Thresholds:
    """Cosines beyond which a concept counts: float32 [3] of the special-care concepts and [17] of the concepts."""

    special: np.ndarray
    concepts: np.ndarray


def excess(
    special: np.ndarray, concepts: np.ndarray, thresholds: Thresholds, adjustment: float = 0.0
) -> np.ndarray:
    """How far every concept is over its threshold, rounded to 3 decimals: cosines [N, 3] and [N, 17] -> float32 [N, 17].

    An image is flagged when one of them is above 0. A special-care concept that is over its own threshold adds 0.01 to those after it and
    to all concepts, once; it flags nothing by itself. With adjustment 0 this is the official loop, number by number.
    """
    added = np.full(len(special), adjustment, np.float32)
    for column in range(special.shape[1]):
        over = np.round(special[:, column] - thresholds.special[column] + added, 3) > 0
        added = np.where(over, np.float32(adjustment + CARE), added)
    return np.round(concepts - thresholds.concepts + added[:, None], 3)


def moved(thresholds: Thresholds, strength: float) -> Thresholds:
    """Thresholds on the line from 1, which no cosine exceeds (strength 0), through their own values (1) and further down."""

    def along(values: np.ndarray) -> np.ndarray:
        if strength == 1.0:
            return values
        return (1.0 - strength * (1.0 - values.astype(np.float64))).astype(np.float32)

    return Thresholds(along(thresholds.special), along(thresholds.concepts))


@dataclass(frozen=True, eq=False)
class Checker:
    """A loaded checker. model: diffusers' StableDiffusionSafetyChecker; processor: CLIPImageProcessor; names: of the 17 concepts."""

    model: Any
    processor: Any
    names: tuple[str, ...]

    @property
    def thresholds(self) -> Thresholds:
        """Those of the checkpoint."""
        special, concepts = (
            weights.detach().float().cpu().numpy()
            for weights in (self.model.special_care_embeds_weights, self.model.concept_embeds_weights)
        )
        return Thresholds(special, concepts)

    def cosines(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosines of images uint8 [N, H, W, 3] with the embeddings: float32 [N, 3] special-care concepts, [N, 17] concepts."""
        import torch
        from diffusers.pipelines.stable_diffusion.safety_checker import cosine_distance
        from PIL import Image

        pictures = [Image.fromarray(image) for image in images]
        pixels = self.processor(images=pictures, return_tensors="pt").pixel_values
        model = self.model
        with torch.no_grad():
            pooled = model.vision_model(pixels.to(model.device, model.visual_projection.weight.dtype))[1]
            seen = model.visual_projection(pooled)
            special, concepts = (
                cosine_distance(seen, e) for e in (model.special_care_embeds, model.concept_embeds)
            )
        return special.float().cpu().numpy(), concepts.float().cpu().numpy()


def load(folder: Path, setting: str, device: Any = "cpu") -> Checker:
    """The checker in a folder: weights and image processor side by side, or in `safety_checker/` and `feature_extractor/`, as a whole
    Stable Diffusion checkpoint has them. Float32.

    Raises FileNotFoundError naming what is missing (pickled weights do not count), ValueError for weights that do not fit.
    """
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    own = folder / "safety_checker"
    place, beside = (own, folder / "feature_extractor") if own.is_dir() else (folder, folder)
    wanted = (place / "config.json", place / WEIGHTS, beside / PROCESSOR)
    missing = [str(path.relative_to(folder)) for path in wanted if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{setting}: {folder} is no complete safety checker: {', '.join(missing)} missing. Put the checker there in diffusers layout, "
            "with weights as safetensors (pickled .bin weights are refused); a whole Stable Diffusion folder with `safety_checker` and "
            "`feature_extractor` will do"
        )
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    model = StableDiffusionSafetyChecker(CLIPConfig.from_dict(config))
    # Not from_pretrained: it fills what it does not find with random numbers, and layouts of the vision tower changed over the years.
    model.load_state_dict(_state(place / WEIGHTS, model.state_dict(), setting))
    names = tuple(config.get("concept_names") or (f"concept {number + 1}" for number in range(CONCEPTS)))
    processor = CLIPImageProcessor.from_pretrained(beside)
    return Checker(model.float().to(device).eval().requires_grad_(False), processor, names)


def _state(path: Path, wanted: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """The tensors of a file under the names that the installed class has. Raises ValueError naming what does not fit."""
    from safetensors.torch import load_file

    nested = "vision_model.vision_model."
    deep = any(name.startswith(nested) for name in wanted)
    found = {}
    for name, tensor in load_file(path).items():
        flat = "vision_model." + name.removeprefix(nested) if name.startswith(nested) else name
        own = (
            nested + flat.removeprefix("vision_model.") if deep and flat.startswith("vision_model.") else flat
        )
        if not own.endswith("position_ids"):  # a constant that older versions stored
            found[own] = tensor.float()
    lacking, odd = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    odd += [
        f"{n} of shape {tuple(found[n].shape)}"
        for n in found
        if n in wanted and found[n].shape != wanted[n].shape
    ]
    if lacking or odd:
        raise ValueError(
            f"{setting}: {path} does not fit its config.json: {len(lacking)} tensors missing {lacking[:3]}, {len(odd)} odd {odd[:3]}"
        )
    return found
