"""A complete Stable Diffusion checkpoint in miniature: real components with random weights, built in under a
second.

Not a stand-in: every class is the one that Stable Diffusion v1 uses, only narrower. `build()` gives a
Pipeline, `save()` writes it as a diffusers folder. Weights follow a seed. The random weights are scaled so
that a text changes the image and images fill the grey range; with plain initialisation every picture would be
the same flat grey, and a test on pixels could not fail.

Latents are [4, 8, 8], images 16 x 16 (the autoencoder halves each side once), text embeddings [77, 32].
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palimpsest.sampling.pipeline import Pipeline

RESOLUTION = 16
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# These are one token each; any other word falls apart into letters.
WORDS = (
    "a",
    "robot",
    "house",
    "tree",
    "lamp",
    "red",
    "blue",
    "of",
    "with",
    "on",
    "photo",
    "gear",
    "gears",
    "crack",
    "static",
    "the",
)
SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}  # fmt: skip


def merges(words: tuple[str, ...] = WORDS) -> list[tuple[str, str]]:
    """Byte-pair merges, left to right, that make one token of each word."""
    pairs: dict[tuple[str, str], None] = {}
    for word in words:
        letters = [*word[:-1], word[-1] + "</w>"]
        left = letters[0]
        for right in letters[1:]:
            pairs[left, right] = None
            left += right
    return list(pairs)


def tokenizer(words: tuple[str, ...] = WORDS) -> Any:
    """A CLIP byte-pair tokenizer: 77 positions, lower case, padded with the end token as in Stable Diffusion
    v1.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    pairs = merges(words)
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(left + right for left, right in pairs),
        BOS,
        EOS,
    ]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=77)


def text_encoder(tokenizer: Any) -> Any:
    """CLIPTextModel: hidden 32, 2 layers, 77 positions."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, projection_dim=32,
        num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = CLIPTextModel(config)
    model.embeddings.token_embedding.weight.data.normal_(
        std=0.5
    )  # words differ by more than their position does
    return model


def unet() -> Any:
    """UNet2DConditionModel: 2 levels of 32 and 64 channels, cross-attention (width 32) on both levels and in
    the middle.
    """
    from diffusers.models import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(32, 64), cross_attention_dim=32,
        attention_head_dim=4, norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    for name, weight in model.named_parameters():
        if ".attn2." in name and name.endswith("weight"):
            weight.data.mul_(3.0)
    return model


def vae() -> Any:
    """AutoencoderKL: one halving of each side, 4 latent channels."""
    from diffusers.models import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(16, 32), norm_num_groups=8, latent_channels=4,
        sample_size=RESOLUTION, scaling_factor=0.18215,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    model.decoder.conv_out.weight.data.mul_(2.0)
    return model


def build(seed: int = 0) -> Pipeline:
    """A Pipeline of tiny components in float32 on the CPU, in eval mode; equal seeds give equal weights."""
    import torch
    from diffusers.schedulers import PNDMScheduler

    from palimpsest.sampling.pipeline import Pipeline

    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {"unet": unet(), "vae": vae(), "text_encoder": text_encoder(words)}
    for part in parts.values():
        part.eval().requires_grad_(False)
    return Pipeline(**parts, tokenizer=words, scheduler=PNDMScheduler(**SCHEDULER))


def save(pipeline: Pipeline, folder: str | Path) -> Path:
    """Write a diffusers folder that `StableDiffusionPipeline.from_pretrained` loads unchanged; returns the
    folder.
    """
    from diffusers import __version__

    folder = Path(folder)
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": __version__,
        "requires_safety_checker": False,
    }
    libraries = {
        "unet": "diffusers",
        "vae": "diffusers",
        "scheduler": "diffusers",
        "text_encoder": "transformers",
        "tokenizer": "transformers",
    }
    for name, library in libraries.items():
        part = getattr(pipeline, name)
        part.save_pretrained(folder / name)
        index[name] = [library, type(part).__name__]
    index |= {name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")}
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return folder
