"""Floating-point operations of networks, counted from their configurations: no weight, no torch.

An operation is a multiplication or an addition of a matrix product, a convolution or an attention, as torch's own counter
(`torch.utils.flop_counter`) counts; normalisations, activations and sums are left out. All counts are for one sample and one pass
forward. A pass backward costs about the same again for the gradients of activations, and once more for those of weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Config = Mapping[str, Any]
TOKENS = 77
DOWN, UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"


def _each(value: Any, count: int) -> list[Any]:
    """One value per level: a list as it is, one number for all."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * count


def _conv(inside: int, outside: int, pixels: float, kernel: int = 3) -> float:
    return 2.0 * kernel**2 * inside * outside * pixels


def _linear(inside: int, outside: int, rows: float = 1.0) -> float:
    return 2.0 * inside * outside * rows


def _attend(width: int, queries: float, keys: float) -> float:
    """Scores and their sums of values, all heads together."""
    return 4.0 * width * queries * keys


def _resnet(inside: int, outside: int, pixels: float, time: int = 0) -> float:
    shortcut = _conv(inside, outside, pixels, 1) if inside != outside else 0.0
    told = _linear(time, outside) if time else 0.0
    return _conv(inside, outside, pixels) + _conv(outside, outside, pixels) + told + shortcut


def _spatial(width: int, pixels: float, context: int, tokens: int, layers: int) -> float:
    """A `Transformer2DModel`: projections in and out, and per layer self-attention, cross-attention and a gated feed-forward net."""
    alone = 4 * _linear(width, width, pixels) + _attend(width, pixels, pixels)
    across = 2 * _linear(width, width, pixels) + 2 * _linear(context, width, tokens)
    across += _attend(width, pixels, tokens)
    gated = _linear(width, 8 * width, pixels) + _linear(4 * width, width, pixels)
    return 2 * _linear(width, width, pixels) + layers * (alone + across + gated)


def unet(config: Config, side: int, tokens: int = TOKENS) -> dict[str, float]:
    """Operations of one evaluation of a `UNet2DConditionModel` by part: "in", "down", "middle", "up", "out".

    config: its config.json. side: of the latents. tokens: of the text. Raises ValueError for kinds of blocks that are not known.
    """
    widths = list(config["block_out_channels"])
    count, time = len(widths), 4 * widths[0]
    layers = _each(config["layers_per_block"], count)
    contexts = _each(config["cross_attention_dim"], count)
    depths = _each(config.get("transformer_layers_per_block") or 1, count)
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    unknown = {*down, *up} - {DOWN, UP, "DownBlock2D", "UpBlock2D"}
    if unknown:
        raise ValueError(
            f"blocks {sorted(unknown)} cannot be counted; known: {DOWN}, {UP}, DownBlock2D, UpBlock2D"
        )
    pixels = float(side**2)
    parts = {"in": _conv(config["in_channels"], widths[0], pixels, config.get("conv_in_kernel", 3))}
    parts["in"] += _linear(widths[0], time) + _linear(time, time)
    if config.get("addition_embed_type") == "text_time":
        parts["in"] += _linear(config["projection_class_embeddings_input_dim"], time) + _linear(time, time)

    found, inside = 0.0, widths[0]
    for level, width in enumerate(widths):
        for place in range(layers[level]):
            found += _resnet(inside if place == 0 else width, width, pixels, time)
            if down[level] == DOWN:
                found += _spatial(width, pixels, contexts[level], tokens, depths[level])
        inside = width
        if level < count - 1:
            pixels /= 4
            found += _conv(width, width, pixels)
    parts["down"] = found

    widest = widths[-1]
    parts["middle"] = 2 * _resnet(widest, widest, pixels, time)
    if config.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn":
        parts["middle"] += _spatial(widest, pixels, contexts[-1], tokens, depths[-1])

    parts["up"] = _up(config, pixels, tokens)
    parts["out"] = _conv(widths[0], config["out_channels"], float(side**2), config.get("conv_out_kernel", 3))
    return parts


def _up(config: Config, pixels: float, tokens: int) -> float:
    """The way up, where every resnet also reads what was kept on the way down. pixels: at the bottom."""
    widths = list(config["block_out_channels"])
    count, time, up = len(widths), 4 * widths[0], list(config["up_block_types"])
    layers = _each(config["layers_per_block"], count)[::-1]
    contexts = _each(config["cross_attention_dim"], count)[::-1]
    depths = _each(config.get("transformer_layers_per_block") or 1, count)[::-1]
    depths = list(config.get("reverse_transformer_layers_per_block") or depths)
    turned, found = widths[::-1], 0.0
    before = turned[0]
    for level, width in enumerate(turned):
        skipped = turned[min(level + 1, count - 1)]
        for place in range(layers[level] + 1):
            skip = skipped if place == layers[level] else width
            found += _resnet((before if place == 0 else width) + skip, width, pixels, time)
            if up[level] == UP:
                found += _spatial(width, pixels, contexts[level], tokens, depths[level])
        before = width
        if level < count - 1:
            pixels *= 4
            found += _conv(width, width, pixels)
    return found


def _vae_middle(width: int, pixels: float, attends: bool) -> float:
    alone = 4 * _linear(width, width, pixels) + _attend(width, pixels, pixels) if attends else 0.0
    return 2 * _resnet(width, width, pixels) + alone


def decoder(config: Config, side: int) -> float:
    """Operations of decoding one image of `side` pixels with an `AutoencoderKL`."""
    widths = list(config["block_out_channels"])[::-1]
    latent, layers = config["latent_channels"], config["layers_per_block"]
    pixels = float((side // 2 ** (len(widths) - 1)) ** 2)
    found = _conv(latent, widths[0], pixels)
    found += _conv(latent, latent, pixels, 1) if config.get("use_post_quant_conv", True) else 0.0
    found += _vae_middle(widths[0], pixels, config.get("mid_block_add_attention", True))
    before = widths[0]
    for level, width in enumerate(widths):
        for place in range(layers + 1):
            found += _resnet(before if place == 0 else width, width, pixels)
        before = width
        if level < len(widths) - 1:
            pixels *= 4
            found += _conv(width, width, pixels)
    return found + _conv(widths[-1], config["out_channels"], pixels)


def encoder(config: Config, side: int) -> float:
    """Operations of encoding one image of `side` pixels with an `AutoencoderKL`."""
    widths = list(config["block_out_channels"])
    latent, layers, pixels = config["latent_channels"], config["layers_per_block"], float(side**2)
    found, before = _conv(config["in_channels"], widths[0], pixels), widths[0]
    for level, width in enumerate(widths):
        for place in range(layers):
            found += _resnet(before if place == 0 else width, width, pixels)
        before = width
        if level < len(widths) - 1:
            pixels /= 4
            found += _conv(width, width, pixels)
    found += _vae_middle(widths[-1], pixels, config.get("mid_block_add_attention", True))
    found += _conv(widths[-1], 2 * latent, pixels)
    return found + (_conv(2 * latent, 2 * latent, pixels, 1) if config.get("use_quant_conv", True) else 0.0)


def _layers(config: Config, rows: float) -> float:
    """The layers of CLIP's transformers, of a text or of an image."""
    width = config["hidden_size"]
    layer = 4 * _linear(width, width, rows) + _attend(width, rows, rows)
    layer += 2 * _linear(width, config["intermediate_size"], rows)
    return float(config["num_hidden_layers"]) * layer


def clip_text(config: Config, tokens: int = TOKENS) -> float:
    """Operations of CLIP's text encoder for one text."""
    return _layers(config, tokens)


def clip_vision(config: Config) -> float:
    """Operations of CLIP's vision tower for one image of its own size."""
    patches = (config["image_size"] // config["patch_size"]) ** 2
    stem = _conv(config.get("num_channels", 3), config["hidden_size"], patches, config["patch_size"])
    return stem + _layers(config, patches + 1)


def t5(config: Config, tokens: int, answer: int = 2) -> float:
    """Operations of a T5 that reads `tokens` and is asked for the probabilities of an answer of `answer` tokens."""
    width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    gates = 3 if str(config.get("feed_forward_proj", "relu")).startswith("gated") else 2

    def layer(rows: int) -> float:
        alone = 4 * _linear(width, inner, rows) + _attend(inner, rows, rows)
        return alone + gates * _linear(width, config["d_ff"], rows)

    across = (
        2 * _linear(width, inner, answer) + 2 * _linear(width, inner, tokens) + _attend(inner, answer, tokens)
    )
    decoders = config.get("num_decoder_layers") or config["num_layers"]
    spoken = _linear(width, config["vocab_size"], answer)
    return config["num_layers"] * layer(tokens) + decoders * (layer(answer) + across) + spoken
