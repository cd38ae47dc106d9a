"""Renders drawn again by the denoiser (SDEdit, Meng et al. 2022, arXiv:2108.01073): a generator's flaws, and a truth still known.

Up to half of the noise is added and taken away again under the picture's own caption. What is shown stays; how it is shown becomes that
of generated pictures: colours that guidance made stronger, smeared edges, tinted shadows.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from palimpsest.world import autoencoder as ae
from palimpsest.world.captions import Example, benign_example, fill, opened, training_example
from palimpsest.world.phrases import PLAIN
from palimpsest.world.render import render_all
from palimpsest.world.scene import Scene, pick, sample_scene
from palimpsest.world.training import arithmetic
from palimpsest.world.unet import solver
from palimpsest.world.vocab import OBJECTS

if TYPE_CHECKING:
    from diffusers import StableDiffusionImg2ImgPipeline

BENIGN = 0.5
GUIDANCE = 5.0
WAYS = ((8, 0.4), (8, 0.5), (10, 0.3), (10, 0.4), (10, 0.5))
"""Steps of the whole schedule, and the share of it that is gone through."""
BATCH = 64


def captioned(rng: np.random.Generator) -> Example:
    """A scene whose caption says nothing it does not show: half of them benign, with every kind of object equally often."""
    if rng.random() < BENIGN:
        scene = sample_scene(rng, kind=pick(rng, OBJECTS))
        return Example(opened(fill(pick(rng, PLAIN), scene, rng), rng), scene, "plain")
    example = training_example(rng)
    return benign_example(rng) if example.style == "implicit" else example


def pipeline_of(autoencoder: Path, clip_folder: Path, unet: Path) -> StableDiffusionImg2ImgPipeline:
    """diffusers' image-to-image pipeline from the folders of the trained parts."""
    from diffusers import AutoencoderKL, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    made = StableDiffusionImg2ImgPipeline(
        vae=AutoencoderKL.from_pretrained(autoencoder),
        text_encoder=CLIPTextModel.from_pretrained(clip_folder, dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(clip_folder),
        unet=UNet2DConditionModel.from_pretrained(unet),
        scheduler=solver(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def examples(count: int, seed: int) -> list[Example]:
    """The first ``count`` captioned scenes of a seed."""
    rng = np.random.default_rng(seed)
    return [captioned(rng) for _ in range(count)]


def scenes(count: int, seed: int) -> list[Scene]:
    """The scenes of :func:`redrawn` without drawing anything."""
    return [example.scene for example in examples(count, seed)]


def redrawn(
    pipeline: StableDiffusionImg2ImgPipeline, count: int, seed: int
) -> tuple[list[Scene], np.ndarray]:
    """``count`` scenes and their pictures drawn again, uint8 ``[count, h, w, 3]``."""
    made = examples(count, seed)
    images = render_all([example.scene for example in made])
    parts = []
    for number, start in enumerate(range(0, count, BATCH)):
        steps, strength = WAYS[number % len(WAYS)]
        chosen = slice(start, start + BATCH)
        with arithmetic():
            drawn = pipeline(
                prompt=[example.text for example in made[chosen]],
                image=(ae.to_tensor(images[chosen]) + 1) / 2,
                strength=strength,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(seed + start),
                output_type="np",
            ).images
        parts.append((drawn * 255).round().astype(np.uint8))
    return [example.scene for example in made], np.concatenate(parts)
