"""Stable Diffusion XL: two text encoders whose states lie side by side, a pooled embedding, and sizes told to the UNet.

A text is one tensor [78, D]. Its first 77 rows are the states of both encoders before their last layer, side by side (768 + 1280 = 2048
wide); the last row holds the pooled embedding of the second encoder (1280) and zeros. So a text is one thing to everything that
interpolates, repeats, batches or stores texts, as in the other architectures, and only two places take it apart: the UNet of this
module, and code that works on single positions (`sampling.embeddings.states_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models import UNet2DConditionModel

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.sampling.pipeline import Pipeline

# Height and width of the picture that a training image was cut from, top and left of the cut, height and width of the cut.
SIZES = 6


class XLUNet(UNet2DConditionModel):  # type: ignore[misc]
    """The UNet of SDXL for texts [N, L + 1, D], see the top of this file. Weights, names and config are those of diffusers' class.

    reduction: pixels per latent on each side. sizes: the six numbers of SIZES told to the UNet; None: of an uncut picture as large as the
    latents it is given, which is also what diffusers tells it.
    """

    reduction = 8
    sizes: tuple[int, ...] | None = None

    @property
    def pooled_width(self) -> int:
        return int(
            self.config.projection_class_embeddings_input_dim - SIZES * self.config.addition_time_embed_dim
        )

    def forward(
        self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if kwargs.get("added_cond_kwargs") is None:
            height, width = (self.reduction * side for side in sample.shape[-2:])
            sizes = self.sizes or (height, width, 0, 0, height, width)
            pooled = encoder_hidden_states[:, -1, : self.pooled_width]
            told = torch.tensor(sizes, dtype=torch.float32, device=sample.device).expand(len(pooled), -1)
            kwargs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": told}
            encoder_hidden_states = encoder_hidden_states[:, :-1]
        return super().forward(sample, timestep, encoder_hidden_states, *args, **kwargs)


def load_parts(folder: Path, dtype: Any, variants: dict[str, dict[str, str]]) -> dict[str, Any]:
    """What SDXL has beside an autoencoder, the first text encoder and a scheduler: arguments of Pipeline.

    Raises ValueError for a UNet that does not fit the text encoders.
    """
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    second = CLIPTextModelWithProjection.from_pretrained(
        folder / "text_encoder_2", dtype=dtype, use_safetensors=True, **variants["text_encoder_2"]
    )
    unet = load_unet(folder, dtype, variants["unet"])
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
    return _fitting(unet, second, folder) | {"tokenizer_2": tokenizer}


def of_diffusers(parts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """UNet and second text encoder of parts that diffusers has loaded, as arguments of Pipeline. folder: of their configurations.

    Raises ValueError for a UNet that does not fit the text encoders.
    """
    given = parts["unet"]
    with torch.device("meta"):
        unet = XLUNet.from_config(given.config)
    unet.load_state_dict(given.state_dict(), assign=True)
    return _fitting(unet, parts["text_encoder_2"], folder)


def _fitting(unet: XLUNet, second: Any, folder: Path) -> dict[str, Any]:
    import json

    index = folder / "model_index.json"
    given = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    if second.config.projection_dim != unet.pooled_width:
        raise ValueError(
            f"{folder}: the second text encoder gives a pooled embedding of {second.config.projection_dim} numbers, the UNet takes "
            f"{unet.pooled_width}; these parts are not of one checkpoint"
        )
    return {
        "unet": unet,
        "text_encoder_2": second,
        "zero_empty": bool(given.get("force_zeros_for_empty_prompt", True)),
    }


def load_unet(folder: Path, dtype: Any, variant: dict[str, str]) -> XLUNet:
    """The UNet of a checkpoint in `folder`."""
    return XLUNet.from_pretrained(folder / "unet", torch_dtype=dtype, use_safetensors=True, **variant)


def completed(parts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The parts of a whole checkpoint, its UNet told how much its autoencoder reduces.

    Raises ValueError for an autoencoder whose latents have a mean of their own, which is not scaled for here.
    """
    config = parts["vae"].config
    if getattr(config, "latents_mean", None) is not None:
        raise ValueError(
            f"{folder}: the autoencoder shifts its latents channel by channel (latents_mean in its config), which no sampler here undoes"
        )
    parts["unet"].reduction = 2 ** (len(config.block_out_channels) - 1)
    return parts


def keeps_float32(pipeline: Pipeline, dtype: Any) -> bool:
    """Whether the autoencoder stays in float32 although the UNet goes to `dtype`: that of SDXL overflows in half precision and says so."""
    return pipeline.text_encoder_2 is not None and dtype == torch.float16 and pipeline.vae.config.force_upcast


def encode(pipeline: Pipeline, prompts: Sequence[str], batch: int) -> Tensor:
    """Texts [N, 78, D] on the pipeline's device, in the dtype of the second text encoder."""
    starts = range(0, len(prompts), batch)
    return torch.cat([_encoded(pipeline, prompts[start : start + batch]) for start in starts])


def _encoded(pipeline: Pipeline, prompts: Sequence[str]) -> Tensor:
    states, pooled = [], None
    for tokenizer, encoder in (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        limit = tokenizer.model_max_length
        ids = tokenizer(
            list(prompts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        ).input_ids
        given = encoder(ids.to(encoder.device), output_hidden_states=True)
        states.append(given.hidden_states[-2])
        pooled = getattr(given, "text_embeds", pooled)
    assert pooled is not None
    return packed(torch.cat(states, dim=-1).to(pooled.dtype), pooled)


def packed(states: Tensor, pooled: Tensor) -> Tensor:
    """Texts [N, L + 1, D] of states [N, L, D] and pooled embeddings [N, P]. Raises ValueError when P is larger than D."""
    if pooled.shape[-1] > states.shape[-1]:
        raise ValueError(
            f"a pooled embedding of {pooled.shape[-1]} numbers has no place beside states {states.shape[-1]} wide"
        )
    row = torch.nn.functional.pad(pooled, (0, states.shape[-1] - pooled.shape[-1]))
    return torch.cat([states, row[:, None]], dim=1)
