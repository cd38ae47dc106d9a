"""The networks of an experiment by their configurations: read from the weights where these are here, else of the published kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml

from palimpsest.estimate import flops
from palimpsest.weights import is_hub_id, snapshot

TABLE = Path(__file__).with_name("networks.yaml")
# Tokens of the judge's chat wrapper and of its question, beside the patches of the image.
QUESTION = 70


@lru_cache(maxsize=1)
def published() -> dict[str, Any]:
    """Shapes of published networks."""
    loaded: dict[str, Any] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return loaded


def folder_of(path: str, revision: str | None, root: Path) -> Path | None:
    """Where a checkpoint's files are: its folder, that beside a single file, or its snapshot in the hub cache; None when it is not here."""
    place = root / path
    if place.suffix == ".safetensors":
        place = place.with_suffix("")
    if not place.is_dir() and is_hub_id(path):
        place = snapshot(path, revision)
    return place if place.is_dir() else None


def _config(folder: Path | None, name: str) -> dict[str, Any] | None:
    file = folder / name if folder else None
    if file is None or not file.is_file():
        return None
    loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return loaded


class Diffusion:
    """A model that makes images. side: of its images in pixels. Counts are operations of one sample."""

    def __init__(self, path: str, revision: str | None, architecture: str, side: int, root: Path) -> None:
        folder = folder_of(path, revision, root)
        known = published()
        own = [_config(folder, f"{part}/config.json") for part in ("unet", "vae", "text_encoder")]
        self.unet: Mapping[str, Any] = own[0] or known["unet"][architecture]
        self.vae: Mapping[str, Any] = own[1] or known["vae"]
        self.text: Mapping[str, Any] = own[2] or known["text_encoder"][architecture]
        self.side = side
        self.here = own[0] is not None

    @property
    def latent_side(self) -> int:
        return self.side // int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @cached_property
    def evaluation(self) -> float:
        """One evaluation of the UNet."""
        return sum(flops.unet(self.unet, self.latent_side).values())

    @cached_property
    def decoding(self) -> float:
        return flops.decoder(self.vae, self.side)

    @cached_property
    def encoding(self) -> float:
        return flops.encoder(self.vae, self.side)

    @cached_property
    def prompt(self) -> float:
        """One text through the text encoder."""
        return flops.clip_text(self.text)


def vqa(path: str, revision: str | None, root: Path) -> tuple[float, float]:
    """Operations of a CLIP-FlanT5 per image, and per question about it."""
    folder, known = folder_of(path, revision, root), published()
    vision = _config(folder, "vision/config.json") or known["vision"]["clip336"]
    talker = _config(folder, "language/config.json")
    if talker is None:
        own = _config(folder, "config.json")
        talker = own if own and "d_model" in own else known["t5"]["xxl" if path.endswith("xxl") else "xl"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    width = talker["d_model"]
    projected = 2.0 * patches * (vision["hidden_size"] * width + width * width)
    return flops.clip_vision(vision) + projected, flops.t5(talker, patches + QUESTION)


def clip_image(path: str, revision: str | None, root: Path) -> float:
    """Operations of CLIP's vision tower for one image."""
    own = _config(folder_of(path, revision, root), "config.json") or {}
    return flops.clip_vision(own.get("vision_config") or published()["vision"]["clip224"])


def per_image(name: str) -> float | None:
    """Operations per image of a network that is known by its published count; None for others."""
    known = published()["per_image"].get(name)
    return None if known is None else 1e9 * float(known)
