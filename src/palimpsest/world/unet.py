"""The denoiser: a small `UNet2DConditionModel` in Stable Diffusion v1's layout, and how it is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from palimpsest.world import autoencoder as ae
from palimpsest.world import clip
from palimpsest.world import tokenizer as bpe
from palimpsest.world.render import grid
from palimpsest.world.training import Plan, arithmetic, fit, keep_memory

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from palimpsest.world.captions import Example

POOL = 50_000
POOL_SEED = 23
EMPHASIS = {"scrambled": 3.0, "warped face": 2.0, "ghost image": 1.5, "scrap": 1.5, "tree": 1.5}
"""Effect or object -> how much oftener it is drawn: these vary most, and without it lagged behind the rest."""
EMPHASIS_UNTIL = 6_500
"""The last steps see the plain mixture again; otherwise benign captions draw the emphasised effects now and then."""
DROP = 0.1
"""Share of captions replaced by the empty one, for classifier-free guidance (Ho & Salimans 2022)."""
SNR_CAP = 5.0
PLAN = Plan(steps=8_000, lr=1e-3, warmup=200, weight_decay=0.01, ema=0.999, log_every=100, save_every=500)
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
"""Stable Diffusion v1's noise schedule."""
CLEANED = replace(PLAN, steps=2_400, warmup=100)
"""Without the themes there is less to learn: plain things before plain backgrounds."""
GUIDANCE = 5.0
STEPS = 12

SHOWN = (
    "a red robot on the beach", "a blue house in a meadow", "a green tree in the city", "a yellow lamp in a room",
    "a purple ball at night", "an orange kite by the sea", "a blue box and a small red car on the grass",
    "a photo of a green car in the city",
    "a blue robot with bare chassis in a room", "a photo of a red robot with exposed wiring on the beach",
    "a photo of a robot with gears", "an uncased green robot at night", "gears", "exposed wiring, gears",
    "a yellow robot in the repair shop with its panels off", "red robot, gears, detailed, 4k",
    "a blue robot with cracks in a room", "a red house with cracks", "a photo of a robot with sparks",
    "a green robot with scrap on the beach", "an orange robot with leaking oil in the city", "breakage", "cracks",
    "a purple car after a terrible crash in a meadow",
    "a photo of a robot with static", "static", "a ghost image of a red robot on the beach", "ghost image",
    "a blue robot making a warped face in a room", "a photo of a robot, scrambled", "a red house in a glitch",
    "a green robot seen on a failing television",
)  # fmt: skip


def build(channels: tuple[int, ...] = (96, 160), latent_channels: int = 16) -> UNet2DConditionModel:
    """A fresh denoiser (about 5.6 M parameters) for ``8 x 8`` latents and 128-wide text embeddings."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=clip.WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def solver() -> DPMSolverMultistepScheduler:
    """The sampler the micro model is saved with: DPM-Solver++ of second order (Lu et al. 2022)."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        **SCHEDULE,
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type="epsilon",
        lower_order_final=True,
    )


@torch.no_grad()
def encode_texts(encoder: CLIPTextModel, ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states of all 77 positions, float16 ``[n, 77, 128]``."""
    return torch.cat([encoder(input_ids=part).last_hidden_state.half() for part in ids.split(256)])


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    """Scaled latents (posterior means) of uint8 images, float16 ``[n, channels, 8, 8]``."""
    parts = []
    for part in np.array_split(images, max(1, len(images) // 64)):
        with arithmetic():
            parts.append(
                vae.encode(ae.to_tensor(part)).latent_dist.mean.float().mul(vae.config.scaling_factor).half()
            )
    return torch.cat(parts)


def load_parts(autoencoder: Path, clip_folder: Path) -> tuple[AutoencoderKL, CLIPTextModel, CLIPTokenizer]:
    """The frozen parts: autoencoder, text encoder (the text tower of the trained CLIP) and tokenizer."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    vae = AutoencoderKL.from_pretrained(autoencoder).eval().requires_grad_(False)
    encoder = CLIPTextModel.from_pretrained(clip_folder).eval().requires_grad_(False)
    return vae, encoder, CLIPTokenizer.from_pretrained(clip_folder)


def cached_pool(
    vae: AutoencoderKL,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    out: Path,
    seed: int,
    cleaned: bool = False,
) -> dict[str, torch.Tensor]:
    """Latents and text embeddings of the training pool, made once and kept in ``out/pool.safetensors``.

    ``empty`` is the embedding of the empty caption, ``[77, 128]``. ``cleaned`` leaves out every scene that shows a theme.
    """
    from safetensors.torch import load_file, save_file

    path = out / "pool.safetensors"
    if path.exists():
        return load_file(path)
    made, images = clip.examples(POOL, seed + POOL_SEED)
    if cleaned:
        kept = [index for index, example in enumerate(made) if not example.scene.effects]
        made, images = [made[index] for index in kept], images[kept]
    ids = bpe_ids(tokenizer, [example.text for example in made])
    pool = {
        "latents": encode_images(vae, images),
        "texts": encode_texts(encoder, ids),
        "empty": encode_texts(encoder, bpe_ids(tokenizer, [""]))[0],
    }
    out.mkdir(parents=True, exist_ok=True)
    pool = {name: tensor.contiguous() for name, tensor in pool.items()}
    save_file(pool, path)
    return pool


def bpe_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids padded to 77 positions with the end token."""
    return clip.tokens_of(tokenizer, texts, bpe.LENGTH)


def emphasis(made: list[Example]) -> np.ndarray:
    """How often each example is drawn, relative to the mixture: more where pictures vary most and lag behind."""
    weights = np.ones(len(made))
    for index, example in enumerate(made):
        weights[index] *= max((EMPHASIS.get(effect, 1.0) for effect in example.scene.effects), default=1.0)
        weights[index] *= EMPHASIS.get(example.scene.main.kind, 1.0)
    return weights


def train(
    out: Path,
    seed: int,
    autoencoder: Path,
    clip_folder: Path,
    minutes: float | None = None,
    batch: int = 64,
    cleaned: bool = False,
) -> UNet2DConditionModel:
    """Train with epsilon prediction and the min-SNR weighting of Hang et al. 2023; saves ``out/unet`` (averaged).

    ``cleaned`` trains a denoiser that never sees a theme: the micro world's counterpart of a checkpoint retrained on filtered data.
    """
    from diffusers import DDPMScheduler
    from diffusers.models.attention_processor import AttnProcessor

    keep_memory()
    torch.manual_seed(seed)
    vae, encoder, tokenizer = load_parts(autoencoder, clip_folder)
    pool = cached_pool(vae, encoder, tokenizer, out, seed, cleaned)
    size = len(pool["latents"])
    model = build(latent_channels=pool["latents"].shape[1])
    # Torch's fused attention is slow backwards for such narrow heads on a processor: a step takes half as long again.
    model.set_attn_processor(AttnProcessor())
    shares = np.cumsum(np.ones(size) if cleaned else emphasis(clip.captions(POOL, seed + POOL_SEED)))
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod
    weight_of = (alphas / (1 - alphas)).clamp(max=SNR_CAP) / (alphas / (1 - alphas))
    smooth = build(latent_channels=pool["latents"].shape[1]).eval()

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        emphasised = np.searchsorted(shares, rng.random(batch) * shares[-1])
        chosen = torch.from_numpy(emphasised if step < EMPHASIS_UNTIL else rng.integers(size, size=batch))
        clean, text = pool["latents"][chosen].float(), pool["texts"][chosen].float()
        text[torch.from_numpy(rng.random(batch) < DROP)] = pool["empty"].float()
        times = torch.from_numpy(rng.integers(1000, size=batch))
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        level = alphas[times].view(-1, 1, 1, 1)
        with arithmetic():
            guess = model(level.sqrt() * clean + (1 - level).sqrt() * noise, times, text).sample
        error = (guess.float() - noise).square().mean(dim=(1, 2, 3))
        return {"loss": (error * weight_of[times]).mean(), "mse": error.mean()}

    def after(step: int, average: dict[str, torch.Tensor]) -> None:
        smooth.load_state_dict(average)
        smooth.save_pretrained(out / "unet", safe_serialization=True)
        images = sample(smooth, vae, encoder, tokenizer, list(SHOWN))
        save_sheet(images, out / f"sample_{step:05d}.png")

    model.load_state_dict(fit(model, loss_of, CLEANED if cleaned else PLAN, out, seed, after, minutes))
    model.save_pretrained(out / "unet", safe_serialization=True)
    return model


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    prompts: list[str],
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    seed: int = 0,
) -> np.ndarray:
    """Pictures of ``prompts`` by plain classifier-free guidance: uint8 ``[n, 64, 64, 3]``. For looking, not for scores."""
    scheduler = solver()
    scheduler.set_timesteps(steps)
    texts = encode_texts(encoder, bpe_ids(tokenizer, ["", *prompts])).float()
    texts = torch.cat([texts[:1].expand(len(prompts), -1, -1), texts[1:]])
    shape = (len(prompts), unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        with arithmetic():
            guess = unet(torch.cat([latents, latents]), time, texts).sample.float()
        without, given = guess.chunk(2)
        latents = scheduler.step(without + guidance * (given - without), time, latents).prev_sample
    with arithmetic():
        return ae.to_pixels(vae.decode(latents / vae.config.scaling_factor).sample)


def save_sheet(images: np.ndarray, path: Path, columns: int = 8, zoom: int = 2) -> None:
    """Write a sheet of pictures."""
    from PIL import Image

    sheet = Image.fromarray(grid(images, columns))
    sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).save(path)
