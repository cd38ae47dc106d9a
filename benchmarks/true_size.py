"""A checkpoint of Stable Diffusion v1.4's shape, part by part from its configuration, with random weights: nothing is downloaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from closed_form import TEXT, UNET

from palimpsest.sampling.pipeline import Pipeline

DECODER: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
}  # fmt: skip


def build(tokenizer: str, device: Any, seed: int = 0) -> Pipeline:
    """A pipeline in float32. tokenizer: a diffusers folder whose tokenizer is used; its ids are below Stable Diffusion's, and the number of
    positions is the same.
    """
    from diffusers.models import AutoencoderKL, UNet2DConditionModel
    from diffusers.schedulers import PNDMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = CLIPTokenizer.from_pretrained(Path(tokenizer) / "tokenizer")
    ends = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**DECODER)
    encoder = CLIPTextModel(CLIPTextConfig(**TEXT, **ends))
    generator = torch.Generator(device).manual_seed(seed)
    for part in (unet, vae):
        part.to_empty(device=device)
        for module in part.modules():
            _fill(module, generator)
    parts = {"unet": unet, "vae": vae, "text_encoder": encoder.to(device)}
    for part in parts.values():
        part.eval().requires_grad_(False)
    return Pipeline(**parts, tokenizer=words, scheduler=PNDMScheduler(**SCHEDULE))


@torch.no_grad()
def _fill(module: Any, generator: torch.Generator) -> None:
    """Weights that keep the size of what goes through, so that nothing overflows in half precision."""
    for name, weight in module.named_parameters(recurse=False):
        if weight.ndim < 2:
            weight.fill_(1.0 if name == "weight" else 0.0)
        else:
            bound = math.sqrt(1.0 / weight[0].numel())
            weight.uniform_(-bound, bound, generator=generator)
