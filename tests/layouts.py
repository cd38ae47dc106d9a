"""Complete checkpoints in miniature of Stable Diffusion v2 and XL, like tests/tiny.py for v1: real components, random weights.

`sd2()`: OpenCLIP's text encoder as diffusers stores it (GELU, padded with "!"), linear layers into the transformer blocks, velocity
prediction, the scheduler that v2.1 ships with. `sdxl()`: two text encoders of different widths, states 80 wide, a pooled embedding of
48, sizes told to the UNet, an autoencoder that overflows in half precision, the scheduler that XL ships with. Images 16 x 16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests import tiny

WIDTH, SECOND_WIDTH = 32, 48
SD2_SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "v_prediction", "timestep_spacing": "leading",
}  # fmt: skip
XL_SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "interpolation_type": "linear", "prediction_type": "epsilon", "steps_offset": 1, "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}  # fmt: skip


def padded_with_mark() -> Any:
    """The tokenizer of OpenCLIP in diffusers layout: "!", token 0, fills a prompt up."""
    from transformers import CLIPTokenizer

    plain = tiny.tokenizer()
    return CLIPTokenizer(vocab=plain.get_vocab(), merges=tiny.merges(), model_max_length=77, pad_token="!")


def text_encoder(kind: str, words: Any, width: int, layers: int, act: str) -> Any:
    """CLIPTextModel or CLIPTextModelWithProjection."""
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, projection_dim=width, hidden_act=act,
        num_hidden_layers=layers, num_attention_heads=4, max_position_embeddings=77, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    model = getattr(transformers, kind)(config)
    model.get_input_embeddings().weight.data.normal_(std=0.5)
    return model


def unet(**changes: Any) -> Any:
    from diffusers.models import UNet2DConditionModel

    config: dict[str, Any] = {
        "sample_size": 8, "layers_per_block": 1, "block_out_channels": (32, 64), "norm_num_groups": 16,
        "use_linear_projection": True, "attention_head_dim": (2, 4), "cross_attention_dim": WIDTH,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    }  # fmt: skip
    model = UNet2DConditionModel(**{**config, **changes})
    for name, weight in model.named_parameters():
        if ".attn2." in name and name.endswith("weight"):
            weight.data.mul_(3.0)
    return model


def save(folder: Path, name: str, parts: dict[str, Any], **config: Any) -> Path:
    """Write a folder that diffusers loads unchanged; returns it."""
    from diffusers import __version__

    index: dict[str, Any] = {"_class_name": name, "_diffusers_version": __version__, **config}
    for part, value in parts.items():
        value.save_pretrained(folder / part)
        library = "transformers" if "text" in part or "token" in part else "diffusers"
        index[part] = [library, type(value).__name__]
    for part in ("safety_checker", "feature_extractor", "image_encoder"):
        index[part] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return folder


def sd2(folder: Path, seed: int = 0, **scheduler: Any) -> Path:
    """A checkpoint of Stable Diffusion v2.1 in miniature; scheduler: what differs in its settings."""
    from diffusers.schedulers import DDIMScheduler

    words = padded_with_mark()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "unet": unet(upcast_attention=True),
            "vae": tiny.vae(),
            "text_encoder": text_encoder("CLIPTextModel", words, WIDTH, 2, "gelu"),
        }
    parts |= {"tokenizer": words, "scheduler": DDIMScheduler(**{**SD2_SCHEDULER, **scheduler})}
    return save(folder, "StableDiffusionPipeline", parts, requires_safety_checker=False)


def sdxl(folder: Path, seed: int = 0, zeros: bool = True) -> Path:
    """A checkpoint of Stable Diffusion XL in miniature."""
    from diffusers.schedulers import EulerDiscreteScheduler

    words, more = tiny.tokenizer(), padded_with_mark()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = tiny.vae()
        vae.register_to_config(scaling_factor=0.13025, force_upcast=True)
        parts = {
            "unet": unet(
                cross_attention_dim=WIDTH + SECOND_WIDTH, transformer_layers_per_block=(1, 2),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
                addition_time_embed_dim=8, projection_class_embeddings_input_dim=SECOND_WIDTH + 6 * 8,
            ),
            "vae": vae,
            "text_encoder": text_encoder("CLIPTextModel", words, WIDTH, 3, "quick_gelu"),
            "text_encoder_2": text_encoder("CLIPTextModelWithProjection", more, SECOND_WIDTH, 3, "gelu"),
        }  # fmt: skip
    parts |= {"tokenizer": words, "tokenizer_2": more, "scheduler": EulerDiscreteScheduler(**XL_SCHEDULER)}
    return save(folder, "StableDiffusionXLPipeline", parts, force_zeros_for_empty_prompt=zeros)
