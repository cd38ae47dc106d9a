"""Which of the known layouts a checkpoint in a diffusers folder has, read from its configs before any weight is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

Architecture = Literal["sd1", "sd2", "sdxl"]
NAMES: dict[Architecture, str] = {
    "sd1": "Stable Diffusion v1",
    "sd2": "Stable Diffusion v2",
    "sdxl": "Stable Diffusion XL",
}


def architecture_of(folder: Path, setting: str = "model.path") -> Architecture:
    """The layout of the checkpoint in `folder`, from unet/config.json: widths do not count, so that small ones are known too.

    sdxl: the UNet takes a pooled text embedding and sizes; sd2: it enters its transformer blocks by a linear layer; sd1: by a
    convolution. Raises ValueError for one that no pipeline here has a place for: no U-Net, a second text encoder beside a UNet that
    takes no pooled embedding, and the XL refiner, which has no first text encoder.
    """
    parts = _parts(folder)
    if "transformer" in parts:
        raise ValueError(
            f"{setting}: {folder} denoises with a transformer ({parts['transformer']}, an MMDiT or DiT as in Stable Diffusion 3 and "
            "FLUX), not with a U-Net. Samplers, methods and hooks here are written for UNet2DConditionModel. Allowed: checkpoints "
            "of Stable Diffusion v1 and v2 and of Stable Diffusion XL in diffusers layout"
        )
    config = _config(folder / "unet" / "config.json")
    added = config.get("addition_embed_type")
    if added not in (None, "text_time"):
        raise ValueError(
            f"{setting}: the UNet of {folder} takes an additional input of kind {added!r}. Allowed: none (Stable Diffusion v1 and v2) and "
            "'text_time' (Stable Diffusion XL)"
        )
    if added is None and "text_encoder_2" in parts:
        raise ValueError(
            f"{setting}: {folder} has a second text encoder ({parts['text_encoder_2']}) but a UNet that takes no pooled text embedding. "
            "Allowed: checkpoints of Stable Diffusion v1 and v2 with one text encoder, and of Stable Diffusion XL with two"
        )
    if added is not None and parts and "text_encoder" not in parts:
        raise ValueError(
            f"{setting}: {folder} has no first text encoder, as the refiner of Stable Diffusion XL, which continues images that another "
            "model began. Give the base checkpoint"
        )
    if added is not None:
        return "sdxl"
    return "sd2" if config.get("use_linear_projection") else "sd1"


def check(given: Architecture, found: Architecture, folder: Path, setting: str) -> None:
    """Raises ValueError when the settings say another architecture than the checkpoint has: methods are chosen by what they say."""
    if given != found:
        name = setting.removesuffix("path") + "architecture" if setting.endswith(".path") else "architecture"
        raise ValueError(
            f"{name}: {given!r} does not fit {folder}, whose configs are those of {NAMES[found]}; set it to {found!r}, or {setting} to "
            f"a checkpoint of {NAMES[given]}"
        )


def _parts(folder: Path) -> dict[str, str]:
    """Part -> class, of those that the index of the folder names; empty without an index."""
    index = folder / "model_index.json"
    if not index.is_file():
        return {}
    given = json.loads(index.read_text(encoding="utf-8"))
    return {name: kind[1] for name, kind in given.items() if isinstance(kind, list) and kind[-1]}


def _config(path: Path) -> dict[str, Any]:
    """A config; empty when there is none, which loading the part will name."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
