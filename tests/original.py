"""Checkpoints in the layout of the first Stable Diffusion releases, all parts in one file, made from a Pipeline."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.sampling.pipeline import Pipeline

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip

OPEN_CLIP = (
    ("embeddings.position_embedding.weight", "positional_embedding"), ("embeddings.token_embedding", "token_embedding"),
    ("final_layer_norm", "ln_final"), ("encoder.layers.", "transformer.resblocks."), ("layer_norm", "ln_"), ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"), ("self_attn", "attn"),
)  # fmt: skip


def unet_name(name: str, layers: int) -> str:
    """The old name of a UNet's parameter; its blocks were numbered in one row."""
    module, _, leaf = name.rpartition(".")
    if module in ENDS:
        return f"{ENDS[module]}.{leaf}"
    found = re.match(
        r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)",
        name,
    )
    assert found, name
    way, level, kind, place, rest = found.groups()
    if kind == "resnets":
        first, _, last = rest.partition(".")
        rest = f"{RESNET[first]}.{last}"
    if way == "mid_block":
        return f"middle_block.{2 * int(place) if kind == 'resnets' else 1}.{rest}"
    row = int(level) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{row + layers + 1}.0.op.{leaf}"
    if kind == "upsamplers":  # these tiny networks attend on every level, so it is the third of its block
        return f"output_blocks.{row + layers}.2.conv.{leaf}"
    blocks, shift = ("input_blocks", 1) if way == "down_blocks" else ("output_blocks", 0)
    return f"{blocks}.{row + int(place) + shift}.{0 if kind == 'resnets' else 1}.{rest}"


def vae_name(name: str, levels: int) -> str:
    """The old name of an autoencoder's parameter; the decoder's levels were numbered from the end."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    for new, old in (
        ("group_norm", "norm"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("to_out.0", "proj_out"),
    ):
        name = name.replace(f"attn_1.{new}.", f"attn_1.{old}.")
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
    return re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)


def open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder under OpenCLIP's names: queries, keys and values in one matrix, the projection turned."""
    import torch

    found: dict[str, Any] = {}
    for name, value in tensors.items():
        bare = name.removeprefix("text_model.")
        if bare == "text_projection.weight":
            found["text_projection"] = value.T
        elif (
            place := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", bare)
        ) is not None:
            whole = [tensors[name.replace("q_proj", f"{which}_proj")] for which in "qkv"]
            found[f"transformer.resblocks.{place[1]}.attn.in_proj_{place[2]}"] = torch.cat(whole)
        elif not re.search(r"self_attn\.[kv]_proj", bare):
            for new, old in OPEN_CLIP:
                bare = bare.replace(new, old)
            found[bare] = value
    return found


def state(pipeline: Pipeline) -> dict[str, Tensor]:
    """All tensors under their old names."""
    layers, levels = pipeline.unet.config.layers_per_block, len(pipeline.vae.config.block_out_channels)
    found: dict[str, Any] = {
        f"model.diffusion_model.{unet_name(name, layers)}": value
        for name, value in pipeline.unet.state_dict().items()
    }
    for name, value in pipeline.vae.state_dict().items():
        old = vae_name(name, levels)
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", old):  # projections of pixels were convolutions
            value = value[:, :, None, None]
        found[f"first_stage_model.{old}"] = value
    xl = pipeline.text_encoder_2 is not None
    first = "conditioner.embedders.0" if xl else "cond_stage_model"
    for name, value in pipeline.text_encoder.state_dict().items():
        bare = name.removeprefix("text_model.")
        found[f"{first}.transformer.text_model.{bare}"] = value
    if xl:
        second = open_clip(pipeline.text_encoder_2.state_dict())
        found |= {f"conditioner.embedders.1.model.{name}": value for name, value in second.items()}
    return {name: value.contiguous().clone() for name, value in found.items()}


def save(pipeline: Pipeline, path: Path, half: bool = False, configs: Path | None = None) -> Path:
    """Write one file, and beside it, in a folder of its name, the configurations and the tokenizer. configs: a folder to take them from."""
    from safetensors.torch import save_file

    from tests import tiny

    tensors = state(pipeline)
    save_file({name: value.half() if half else value for name, value in tensors.items()}, path)
    folder = path.with_suffix("")
    if configs is None:
        tiny.save(pipeline, folder)
    else:
        shutil.copytree(configs, folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return path
