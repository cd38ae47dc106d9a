"""ImageReward's network on transformers' BLIP classes: a vision transformer, a BERT with cross-attention to it, and five linear layers.

The released names (`blip.visual_encoder.blocks.0.attn.qkv.weight`, `blip.text_encoder.encoder.layer.0...`, `mlp.layers.0...`) are mapped
onto those of transformers; sizes are read from the tensors, so a small network of the same layout loads as well.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
"""What the released model subtracts and divides by, so that rewards of its training data have mean 0 and deviation 1."""
HEAD = "mlp.layers."
VISION, TEXT = "blip.visual_encoder.", "blip.text_encoder."
RENAMED = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.layers.\1.self_attn."),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)
# Counters that old versions of BERT stored, and heads of BLIP's own training, which a reward does not use.
UNUSED = re.compile(
    r"position_ids$|^blip\.(vision_proj|text_proj|itm_head|text_decoder|visual_encoder_m|text_encoder_m|vision_proj_m|text_proj_m)"
    r"|^blip\.(temp|image_queue|text_queue|queue_ptr)$"
)


class RewardNetwork(nn.Module):
    """Pictures and token ids -> rewards."""

    def __init__(self, vision: nn.Module, text: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.vision = vision
        self.text = text
        self.head = head

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Standardised rewards [n] of pixels [n, 3, h, w] and token ids [n, length] with their attention mask."""
        return self.judged(self.vision(pixel_values=pixels).last_hidden_state, ids, mask)

    def judged(self, seen: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The same from what the vision transformer gives, [n, places, width]."""
        everywhere = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
        read = self.text(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=everywhere,
        ).last_hidden_state
        return (self.head(read[:, 0]).squeeze(-1) - MEAN) / DEVIATION


def sizes(tensors: dict[str, torch.Tensor], heads: dict[str, int] | None = None) -> dict[str, Any]:
    """Widths and depths of a released state dict. Raises ValueError when its parts are not there. heads: attention heads of "vision" and
    "text", which no tensor tells (64 numbers per head when not given, as in the released model)."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise ValueError(
                f"these are no weights of ImageReward: {name} is missing (of {len(tensors)} tensors); expected ImageReward.pt"
            )
        return tuple(tensors[name].shape)

    width, _, patch, _ = shape(f"{VISION}patch_embed.proj.weight")
    places = shape(f"{VISION}pos_embed")[1]
    words, text_width = shape(f"{TEXT}embeddings.word_embeddings.weight")
    heads = heads or {"vision": width // 64, "text": text_width // 64}
    return {
        "vision": {
            "hidden_size": width,
            "intermediate_size": shape(f"{VISION}blocks.0.mlp.fc1.weight")[0],
            "num_hidden_layers": _depth(tensors, rf"^{re.escape(VISION)}blocks\.(\d+)\."),
            "num_attention_heads": heads["vision"],
            "patch_size": patch,
            "image_size": round((places - 1) ** 0.5) * patch,
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu",
        },
        "text": {
            "vocab_size": words,
            "hidden_size": text_width,
            "encoder_hidden_size": shape(f"{TEXT}encoder.layer.0.crossattention.self.key.weight")[1],
            "intermediate_size": shape(f"{TEXT}encoder.layer.0.intermediate.dense.weight")[0],
            "num_hidden_layers": _depth(tensors, rf"^{re.escape(TEXT)}encoder\.layer\.(\d+)\."),
            "num_attention_heads": heads["text"],
            "max_position_embeddings": shape(f"{TEXT}embeddings.position_embeddings.weight")[0],
            "layer_norm_eps": 1e-12,
            "hidden_act": "gelu",
            "is_decoder": True,  # gives every layer its cross-attention; the mask below stays two-way
        },
    }


def _depth(tensors: dict[str, torch.Tensor], pattern: str) -> int:
    found = [int(match[1]) for name in tensors if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def state_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Released names -> names of `RewardNetwork`. Raises ValueError for tensors that belong to nothing."""
    found: dict[str, torch.Tensor] = {}
    strange = []
    for name, value in tensors.items():
        if UNUSED.search(name):
            continue
        if name.startswith(VISION):
            inner = name.removeprefix(VISION)
            for pattern, new in RENAMED:
                inner = re.sub(pattern, new, inner)
            found[f"vision.{inner}"] = value
        elif name.startswith(TEXT):
            found[f"text.{name.removeprefix(TEXT)}"] = value
        elif name.startswith(HEAD):
            found[f"head.{name.removeprefix(HEAD)}"] = value
        else:
            strange.append(name)
    if strange or not found:
        raise ValueError(
            f"these are no weights of ImageReward: {len(strange)} unknown tensors (first: {strange[:1]}), {len(found)} known ones"
        )
    return found


def build(tensors: dict[str, torch.Tensor], heads: dict[str, int] | None = None) -> RewardNetwork:
    """The network of a released state dict, every tensor in its place. Raises ValueError naming what is missing or left over."""
    from transformers import BlipTextConfig, BlipVisionConfig
    from transformers.models.blip.modeling_blip import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    found = sizes(tensors, heads)
    vision = BlipVisionModel(BlipVisionConfig(**found["vision"]))
    text = BlipTextModel(BlipTextConfig(**found["text"]), add_pooling_layer=False)
    numbers = sorted(
        {int(name.removeprefix(HEAD).split(".")[0]) for name in tensors if name.startswith(HEAD)}
    )
    layers = {str(n): _linear(tensors[f"{HEAD}{n}.weight"]) for n in numbers}
    network = RewardNetwork(vision, text, nn.Sequential(_ordered(layers)))
    missing, left = network.load_state_dict(state_of(tensors), strict=False)
    missing = [name for name in missing if not name.endswith("position_ids")]
    if missing or left:
        raise ValueError(
            f"these are no weights of ImageReward: missing {missing[:3]} ({len(missing)}), left over {left[:3]} ({len(left)})"
        )
    return network.eval().requires_grad_(False)


def _ordered(layers: dict[str, nn.Module]) -> Any:
    from collections import OrderedDict

    return OrderedDict(layers)


def _linear(weight: torch.Tensor) -> nn.Linear:
    return nn.Linear(weight.shape[1], weight.shape[0])
