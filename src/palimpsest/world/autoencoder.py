"""The autoencoder: 64 x 64 RGB <-> 8 x 8 latents (`AutoencoderKL`, factor 8)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from palimpsest.world.mixture import training_scene
from palimpsest.world.render import grid, render_all
from palimpsest.world.training import Plan, arithmetic, fit

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

KL_WEIGHT = 1e-6
POOL = 20_000
PLAN = Plan(steps=7500, lr=1.5e-3, warmup=100, weight_decay=0.0, ema=0.995, log_every=100, save_every=500)
LATENT_NOISE = 0.06
"""Noise the decoder must bear: about half of what the posterior has in the channels that carry the picture."""
DECODER_PLAN = Plan(
    steps=4600, lr=1e-3, warmup=100, weight_decay=0.0, ema=0.998, log_every=100, save_every=500
)


def build(latent_channels: int = 16, channels: tuple[int, ...] = (16, 32, 64, 96)) -> AutoencoderKL:
    """A fresh autoencoder; factor ``2 ** (len(channels) - 1)``."""
    from diffusers import AutoencoderKL

    depth = len(channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 ``[n, h, w, 3]`` -> float32 ``[n, 3, h, w]`` in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """Float ``[n, 3, h, w]`` in [-1, 1] -> uint8 ``[n, h, w, 3]``."""
    pixels = images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def train(
    out: Path, seed: int, minutes: float | None = None, batch: int = 8, **shape: object
) -> AutoencoderKL:
    """Train on the scene mixture. Loss: L1 + squared error + a very small KL term (pictures are clean, latents free)."""
    torch.manual_seed(seed)
    model = build(**shape)  # type: ignore[arg-type]
    rng = np.random.default_rng([seed, 1])
    pool = render_all([training_scene(rng, even=True) for _ in range(POOL)])
    held_out = render_all([training_scene(rng, even=True) for _ in range(32)])

    def loss_of(step: int, batch_rng: np.random.Generator) -> dict[str, torch.Tensor]:
        images = pool[batch_rng.integers(POOL, size=batch)]
        if batch_rng.random() < 0.5:
            images = images[:, :, ::-1].copy()
        images = to_tensor(images)
        noise = torch.Generator().manual_seed(int(batch_rng.integers(2**31)))
        with arithmetic():
            posterior = model.encode(images).latent_dist
            decoded = model.decode(posterior.sample(noise)).sample.float()
        kl = posterior.kl().float().mean()
        error = decoded - images
        l1, l2 = error.abs().mean(), error.square().mean()
        return {"loss": l1 + l2 + KL_WEIGHT * kl, "l1": l1, "l2": l2, "kl": kl}

    smooth = build(**shape).eval()  # type: ignore[arg-type]

    def after(step: int, average: dict[str, torch.Tensor]) -> None:
        smooth.load_state_dict(average)
        show(smooth, held_out, out / f"sample_{step:05d}.png")

    weights = fit(model, loss_of, PLAN, out, seed, after, minutes)
    model.load_state_dict(weights)
    scale = measure_scale(model, pool[:512])
    model.register_to_config(scaling_factor=scale)
    model.save_pretrained(out / "vae", safe_serialization=True)
    return model


def gradients(images: torch.Tensor) -> torch.Tensor:
    """Differences of neighbouring pixels down and across, flattened: ``[n, ...]``. Keeps edges sharp in a loss."""
    down, across = images[:, :, 1:] - images[:, :, :-1], images[:, :, :, 1:] - images[:, :, :, :-1]
    return torch.cat([down.flatten(1), across.flatten(1)], dim=1)


def train_decoder(
    out: Path, seed: int, autoencoder: Path, minutes: float | None = None, batch: int = 8
) -> AutoencoderKL:
    """Train the decoder further while the encoder stays, as was done for Stable Diffusion's later decoders.

    Latents keep their meaning, so the denoiser may be trained at the same time. Loss: L1 on pixels and on gradients.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    model = AutoencoderKL.from_pretrained(autoencoder)
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    rng = np.random.default_rng([seed, 2])
    pool = render_all([training_scene(rng, even=bool(rng.random() < 0.7)) for _ in range(POOL)])
    held_out = render_all([training_scene(rng, even=True) for _ in range(32)])
    latents = torch.cat([_means(model, part) for part in np.array_split(pool, POOL // 100)])

    def loss_of(_step: int, batch_rng: np.random.Generator) -> dict[str, torch.Tensor]:
        chosen = batch_rng.integers(POOL, size=batch)
        clean = latents[torch.from_numpy(chosen)].float()
        noise = torch.from_numpy(batch_rng.standard_normal(clean.shape, dtype=np.float32))
        with arithmetic():
            decoded = model.decode(clean + LATENT_NOISE * noise).sample.float()
        images = to_tensor(pool[chosen])
        l1, edges = (decoded - images).abs().mean(), (gradients(decoded) - gradients(images)).abs().mean()
        return {"loss": l1 + edges, "l1": l1, "edges": edges}

    smooth = AutoencoderKL.from_pretrained(autoencoder).eval()

    def after(step: int, average: dict[str, torch.Tensor]) -> None:
        smooth.load_state_dict(average)
        smooth.save_pretrained(out / "vae", safe_serialization=True)
        show(smooth, held_out, out / f"sample_{step:05d}.png")

    model.load_state_dict(fit(model, loss_of, DECODER_PLAN, out, seed, after, minutes))
    model.save_pretrained(out / "vae", safe_serialization=True)
    return model


@torch.no_grad()
def _means(model: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    with arithmetic():
        return model.encode(to_tensor(images)).latent_dist.mean.half()


@torch.no_grad()
def measure_scale(model: AutoencoderKL, images: np.ndarray) -> float:
    """1 / standard deviation of the latents, as Stable Diffusion's ``scaling_factor``."""
    latents = torch.cat(
        [model.encode(to_tensor(part)).latent_dist.mean for part in np.array_split(images, 8)]
    )
    return round(float(1 / latents.float().std()), 5)


@torch.no_grad()
def show(model: AutoencoderKL, images: np.ndarray, path: Path) -> None:
    """Write a sheet of pictures, each row followed by its reconstruction."""
    from PIL import Image

    decoded = to_pixels(model.decode(model.encode(to_tensor(images)).latent_dist.mean).sample)
    rows = [part for pair in zip(np.split(images, 2), np.split(decoded, 2), strict=True) for part in pair]
    sheet = Image.fromarray(grid(np.concatenate(rows), len(images) // 2))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(path)
