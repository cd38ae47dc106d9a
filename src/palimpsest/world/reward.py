"""The micro world's ImageReward: what a picture is worth as an answer to its prompt, learnt from which of two pictures is the better one.

    python -m palimpsest.world.train reward --clip DIR --autoencoder DIR --out DIR --seed 0

Nobody rated these pictures; the order is known because they were drawn. The picture of a prompt's own scene comes before the same picture
damaged, before the scene with one named thing changed, and before the picture of another prompt. Network, tokens, loss (the negative log
likelihood of every order; Xu et al. 2023, section 3) and file are those of ImageReward, at a size that trains in minutes. The vision
transformer and the words start from CLIP's.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from palimpsest.metrics import _blip_reward as released
from palimpsest.metrics import image_reward as metric
from palimpsest.world import captions, clip
from palimpsest.world.captions import Example
from palimpsest.world.features import DAMAGES, damaged
from palimpsest.world.gates import HELD_OUT, rate
from palimpsest.world.phrases import PLACES
from palimpsest.world.render import render_all
from palimpsest.world.scene import Scene, pick
from palimpsest.world.training import Plan, fit
from palimpsest.world.vocab import BACKGROUNDS, COLOURS, OBJECTS, SIZE

if TYPE_CHECKING:
    from transformers import CLIPModel

POOL = 12_000
HELD_OUT_PAIRS = 1_000
SEED = 97
BATCH = 32
OTHERS = 8
FOLDER, WEIGHTS = "reward", "model.safetensors"
PLAN = Plan(
    steps=700, lr=1e-3, warmup=50, weight_decay=0.02, ema=0.99, slow=(("vision.", 0.3),), log_every=25, save_every=100
)  # fmt: skip
TEXT_DEPTH, HEADS, PATCH, WIDTH = 2, 4, 8, clip.WIDTH
HIDDEN = (64, 32, 16, 8)
"""Widths of the head's layers; the released model has 1024, 128, 64 and 16, with dropout between them."""
SPREAD = 0.08
"""Deviation of the text transformer's first weights: BERT's 0.02 is for layers six times as wide, and learns nothing for long here."""
LIMITS = {"over_another": 0.97, "over_a_change": 0.85, "over_damage": 0.90}
"""Least share of held-out pairs that are put in the right order."""


def changed(example: Example, rng: np.random.Generator) -> Scene | None:
    """The example's scene with one thing that its caption names made another: kind, colour, place or an effect; None when it names none."""
    scene, text = example.scene, example.text
    main, found = scene.main, []
    words = text.replace(",", " ").split()
    robotic = bool(
        scene.effects
    )  # effects of `uncased` belong to robots, so what shows effects keeps its kind
    if main.kind in words and not robotic:
        kinds = [k for k in OBJECTS if k != main.kind and (scene.second is None or k != scene.second.kind)]
        found.append(replace(scene, main=replace(main, kind=pick(rng, kinds))))
    if f"{main.colour} {main.kind}" in text:
        taken = {main.colour, scene.second.colour if scene.second else main.colour}
        colours = [colour for colour in COLOURS if colour not in taken]
        found.append(replace(scene, main=replace(main, colour=pick(rng, colours))))
    if any(phrase in text for phrase in PLACES[scene.background]) or scene.background in words:
        places = [place for place in BACKGROUNDS if place != scene.background]
        found.append(replace(scene, background=pick(rng, places)))
    if scene.effects and example.keywords:
        found.append(replace(scene, effects=()))
    return found[int(rng.integers(len(found)))] if found else None


def pool(count: int, seed: int) -> tuple[list[Example], np.ndarray, np.ndarray]:
    """Captioned scenes that name something, their renders, and renders with one named thing changed: uint8 [n, 64, 64, 3] each."""
    rng = np.random.default_rng(seed)
    kept: list[Example] = []
    others: list[Scene] = []
    while len(kept) < count:
        for example in captions.training_example(rng), captions.benign_example(rng):
            other = changed(example, rng)
            if other is not None and len(kept) < count:
                kept.append(example)
                others.append(other)
    return kept, render_all([example.scene for example in kept]), render_all(others)


def spoilt(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The pictures uint8 [n, h, w, 3], each with a damage that shows."""
    return np.stack(
        [
            damaged(image, pick(rng, DAMAGES), float(rng.uniform(0.35, 1.0)), int(rng.integers(2**31)))
            for image in images
        ]
    )


def fresh(seed: int, words: int) -> dict[str, torch.Tensor]:
    """Weights to start from, under the released names."""
    from transformers import BlipTextConfig, BlipVisionConfig
    from transformers.models.blip.modeling_blip import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    torch.manual_seed(seed)
    sizes = {"num_hidden_layers": TEXT_DEPTH, "num_attention_heads": HEADS, "intermediate_size": 4 * WIDTH}
    vision = BlipVisionModel(
        BlipVisionConfig(
            **sizes | {"num_hidden_layers": 4}, hidden_size=WIDTH, image_size=SIZE, patch_size=PATCH
        )
    )
    text = BlipTextModel(
        BlipTextConfig(
            **sizes, hidden_size=WIDTH, encoder_hidden_size=WIDTH, vocab_size=words, is_decoder=True,
            max_position_embeddings=metric.LENGTH, hidden_act="gelu", initializer_range=SPREAD,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    layers = [torch.nn.Linear(a, b) for a, b in zip((WIDTH, *HIDDEN), (*HIDDEN, 1), strict=True)]
    theirs = {f"vision.{n}": t for n, t in vision.state_dict().items()}
    theirs |= {f"text.{n}": t for n, t in text.state_dict().items()}
    theirs |= {f"head.{i}.{n}": t for i, layer in enumerate(layers) for n, t in layer.state_dict().items()}
    return named_as_released({n: t for n, t in theirs.items() if not n.endswith("position_ids")})


def named_as_released(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of `RewardNetwork` -> those of the released file, the inverse of `_blip_reward.state_of`."""
    found = {}
    for name, value in state.items():
        part, _, inner = name.partition(".")
        if part == "vision":
            for old, new in VISION_NAMES:
                inner = inner.replace(old, new)
            found[released.VISION + inner] = value
        else:
            found[(released.TEXT if part == "text" else released.HEAD) + inner] = value
    return found


VISION_NAMES = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding.", "patch_embed.proj."),
    ("post_layernorm.", "norm."),
    ("encoder.layers.", "blocks."),
    ("self_attn.projection.", "attn.proj."),
    ("self_attn.", "attn."),
    ("layer_norm", "norm"),
)


@torch.no_grad()
def start_from_clip(network: released.RewardNetwork, known: CLIPModel) -> None:
    """Give the vision transformer the layers of CLIP's and the text transformer its words, in place.

    CLIP normalises what enters the first layer and BLIP does not, so scale and shift of that norm go into the embeddings; what it does from
    token to token is lost, which training mends.
    """
    theirs = known.vision_model
    ours: Any = network.vision
    for mine, other in zip(ours.encoder.layers, theirs.encoder.layers, strict=True):
        old = other.self_attn
        for end in ("weight", "bias"):
            three = [getattr(getattr(old, f"{name}_proj"), end) for name in "qkv"]
            getattr(mine.self_attn.qkv, end).copy_(torch.cat(three))
            getattr(mine.self_attn.projection, end).copy_(getattr(old.out_proj, end))
        for name in ("layer_norm1", "layer_norm2", "mlp"):
            getattr(mine, name).load_state_dict(getattr(other, name).state_dict())
    norm, inside = theirs.pre_layrnorm, theirs.embeddings
    patches = inside.patch_embedding.weight.flatten(1)
    places = inside.position_embedding.weight
    spread = float(
        (places - places.mean(dim=1, keepdim=True)).std() + patches.std() * patches.shape[1] ** 0.5
    )
    gain = norm.weight / spread
    ours.embeddings.patch_embedding.weight.copy_(inside.patch_embedding.weight * gain[:, None, None, None])
    ours.embeddings.patch_embedding.bias.copy_(norm.bias)
    ours.embeddings.position_embedding.copy_((places * gain)[None])
    ours.embeddings.class_embedding.copy_((inside.class_embedding * gain + norm.bias)[None, None])
    ours.post_layernorm.load_state_dict(theirs.post_layernorm.state_dict())
    # words mean what they mean to CLIP, at the size of BERT's embeddings
    words, text = known.text_model.embeddings.token_embedding.weight, network.text
    text.embeddings.word_embeddings.weight.copy_(words * (text.config.initializer_range / words.std()))


def order_loss(rewards: torch.Tensor) -> dict[str, torch.Tensor]:
    """Negative log likelihood of the known orders. rewards [n, 3 + others]: own picture, with a change, damaged, other prompts'."""
    own, change, damage = (rewards[:, i : i + 1] for i in range(3))
    others = rewards[:, 3:]
    pairs = {"change": own - change, "damage": own - damage, "other": own - others, "nearer": change - others}
    losses = {name: -functional.logsigmoid(gap).mean() for name, gap in pairs.items()}
    return {"loss": torch.stack(list(losses.values())).mean(), **losses}


def tokens_of(tokenizer: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask [n, 35], as the metric makes them."""
    found = tokenizer(
        texts, padding="max_length", truncation=True, max_length=metric.LENGTH, return_tensors="pt"
    )
    return found["input_ids"], found["attention_mask"]


def train(out: Path, seed: int, clip_folder: Path, minutes: float | None = None) -> dict[str, Any]:
    """Train and save `out/reward`; returns the gates, also in `out/gates.json`. Raises ValueError when a limit is missed."""
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, CLIPModel

    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    network = released.build(fresh(seed, len(tokenizer)), heads_of()).train().requires_grad_(True)
    start_from_clip(network, CLIPModel.from_pretrained(clip_folder, dtype=torch.float32))
    made, own, other = pool(POOL, seed + SEED)
    ids, mask = tokens_of(tokenizer, [example.text for example in made])
    lengths = mask.sum(dim=1)

    def loss_of(_step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        chosen = rng.choice(POOL, size=BATCH, replace=False)
        pictures = np.concatenate((own[chosen], other[chosen], spoilt(own[chosen], rng)))
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        seen = network.vision(pixel_values=clip.normalise(pixels)).last_hidden_state
        # pictures of other prompts have been looked at already: as the good ones of their own
        seen = torch.cat([seen, *(seen[:BATCH].roll(by + 1, dims=0) for by in range(OTHERS))])
        short = int(lengths[chosen].max())
        texts, masks = (part[chosen][:, :short].repeat(3 + OTHERS, 1) for part in (ids, mask))
        rewards = network.judged(seen, texts, masks)
        return order_loss(rewards.view(3 + OTHERS, BATCH).T)

    network.load_state_dict(fit(network, loss_of, PLAN, out, seed, minutes=minutes))
    standardise(network, tokenizer, made, (own, other))
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        n: t.half().contiguous() for n, t in network.state_dict().items() if not n.endswith("position_ids")
    }
    save_file(named_as_released(state), folder / WEIGHTS)
    gates = examined(folder / WEIGHTS, clip_folder, seed)
    (out / "gates.json").write_text(json.dumps(gates, indent=2) + "\n", encoding="utf-8")
    failed = {name: gate["value"] for name, gate in gates.items() if not gate["passed"]}
    if failed:
        raise ValueError(f"the reward model misses its limits {LIMITS}: {failed}")
    return gates


def heads_of() -> dict[str, int]:
    """Attention heads, which the file does not tell (metrics' setting `heads`)."""
    return {"vision": HEADS, "text": HEADS}


@torch.no_grad()
def standardise(
    network: released.RewardNetwork, tokenizer: Any, made: list[Example], pictures: tuple[np.ndarray, ...]
) -> None:
    """Shift and scale the last layer, in place, so that rewards of good and changed pictures together have mean 0 and deviation 1."""
    count = 600
    ids, mask = tokens_of(tokenizer, [example.text for example in made[:count]])
    network.eval()
    found = []
    for images in pictures:
        pixels = torch.from_numpy(images[:count]).permute(0, 3, 1, 2).float() / 255
        parts = zip(clip.normalise(pixels).split(100), ids.split(100), mask.split(100), strict=True)
        found += [network(*part) for part in parts]
    rewards = torch.cat(found)
    last: Any = list(network.head)[-1]  # type: ignore[call-overload]
    # rewards are (raw - MEAN) / DEVIATION; the new raw values are (reward - mean) / deviation * DEVIATION + MEAN
    mean, size = float(rewards.mean()), float(rewards.std())
    last.bias.copy_((last.bias - released.MEAN - mean * released.DEVIATION) / size + released.MEAN)
    last.weight.div_(size)


def examined(path: Path, tokenizer: Path, seed: int) -> dict[str, Any]:
    """Held-out pairs in the right order, by the metric as reports load it, as gates (value, n, interval, limit, passed)."""
    from palimpsest.metrics.measuring import Pictures

    settings = metric.Settings(path=str(path), tokenizer=str(tokenizer), heads=heads_of())
    loaded = metric.load(settings)
    rng = np.random.default_rng(seed + HELD_OUT + 7)
    made, own, other = pool(HELD_OUT_PAIRS, seed + HELD_OUT + 5)
    texts = [example.text for example in made]

    def rewards(images: np.ndarray) -> np.ndarray:
        return loaded.measure(Pictures(list(images), texts))["image_reward"]

    good = rewards(own)
    worse = {
        "over_another": np.roll(own, 1, axis=0),
        "over_a_change": other,
        "over_damage": spoilt(own, rng),
    }
    return {name: rate(good > rewards(images), LIMITS[name], "min") for name, images in worse.items()}
