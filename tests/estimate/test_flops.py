"""Operations counted from configurations are those that torch counts on the networks themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from palimpsest.estimate import flops
from tests import tiny

NETWORKS = yaml.safe_load(Path("src/palimpsest/estimate/networks.yaml").read_text(encoding="utf-8"))
MICRO = Path("models/micro/stable-diffusion")


def counted(call) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def own(module, *inputs, **named) -> float:
    return counted(lambda: module(*inputs, **named))


def unet_of(config):
    from diffusers.models import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**{k: v for k, v in config.items() if not k.startswith("_")})


def evaluated(config, side) -> float:
    meta = {"device": "meta"}
    more = {}
    if config.get("addition_embed_type"):
        more = {
            "added_cond_kwargs": {
                "text_embeds": torch.empty(1, 1280, **meta),
                "time_ids": torch.empty(1, 6, **meta),
            }
        }
    inputs = torch.empty(1, config["in_channels"], side, side, **meta)
    texts = torch.empty(1, 77, config["cross_attention_dim"], **meta)
    return own(unet_of(config), inputs, torch.zeros(1, **meta), texts, **more)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_published_unets(kind):
    config = NETWORKS["unet"][kind]
    assert sum(flops.unet(config, 64).values()) == evaluated(config, 64)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_unets_of_the_published_kinds_at_a_tenth_of_their_widths(kind):
    config = NETWORKS["unet"][kind]
    small = {
        **config,
        "block_out_channels": [width // 10 for width in config["block_out_channels"]],
        "cross_attention_dim": 96,
        "attention_head_dim": 4,
    }
    assert sum(flops.unet(small, 32).values()) == evaluated(small, 32)


def test_the_unets_of_the_micro_world_and_of_the_tests():
    micro = json.loads((MICRO / "unet/config.json").read_text(encoding="utf-8"))
    assert sum(flops.unet(micro, 8).values()) == evaluated(micro, 8)
    small = dict(tiny.unet().config)
    assert sum(flops.unet(small, 8).values()) == evaluated(small, 8)


def test_a_block_that_is_not_known_is_named():
    odd = {**NETWORKS["unet"]["sd1"], "down_block_types": ["AttnDownBlock2D"] * 4}
    with pytest.raises(ValueError, match="AttnDownBlock2D"):
        flops.unet(odd, 64)


@pytest.mark.parametrize("where", ["published", "micro"])
def test_autoencoders(where):
    from diffusers.models import AutoencoderKL

    config, side = dict(NETWORKS["vae"]), 512
    config |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    if where == "micro":
        config, side = json.loads((MICRO / "vae/config.json").read_text(encoding="utf-8")), 64
    with torch.device("meta"):
        vae = AutoencoderKL(**{k: v for k, v in config.items() if not k.startswith("_")})
        image, latents = (
            torch.empty(1, 3, side, side),
            torch.empty(1, config["latent_channels"], side // 8, side // 8),
        )
    assert flops.decoder(config, side) == counted(lambda: vae.decode(latents))
    assert flops.encoder(config, side) == counted(lambda: vae.encode(image))


def test_clip_and_t5():
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel, T5Config
    from transformers import T5ForConditionalGeneration as T5

    vision, text, talker = (
        NETWORKS["vision"]["clip336"],
        NETWORKS["text_encoder"]["sd1"],
        NETWORKS["t5"]["xl"],
    )
    with torch.device("meta"):
        seen = CLIPVisionModel(CLIPVisionConfig(**vision, num_attention_heads=16))
        read = CLIPTextModel(CLIPTextConfig(**text, num_attention_heads=12))
        said = T5(T5Config(**talker))
        pixels, tokens = torch.empty(1, 3, 336, 336), torch.zeros(1, 77, dtype=torch.long)
        states, answer = torch.empty(1, 600, 2048), torch.zeros(1, 2, dtype=torch.long)
    assert flops.clip_vision(vision) == pytest.approx(own(seen, pixel_values=pixels), rel=1e-3)
    assert flops.clip_text(text) == pytest.approx(own(read, tokens), rel=1e-3)
    told = counted(lambda: said(inputs_embeds=states, decoder_input_ids=answer, use_cache=False))
    assert flops.t5(talker, 600) == pytest.approx(told, rel=1e-3)
