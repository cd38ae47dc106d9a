"""The micro judge: a small CLIP-FlanT5 trained on renders and on what the autoencoder makes of them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from palimpsest.detectors.clip_flant5 import ClipFlanT5, Settings, pixels_of, projector
from palimpsest.world import autoencoder as ae
from palimpsest.world import clip, redraw, vision
from palimpsest.world.mixture import training_scene
from palimpsest.world.questions import all_texts, draw_question, joined
from palimpsest.world.render import render_all
from palimpsest.world.scene import Scene, labels_of
from palimpsest.world.training import Plan, arithmetic, fit, keep_memory, steps_done
from palimpsest.world.vocab import SIZE, THEMES

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import T5Config, T5Tokenizer

WIDTH = 128
POOL = 40_000
"""Pictures to train on; with 16,000 the judge had seen some twenty yellow cars by the sea and took sunlit ones for sparks."""
EVEN_SHARE = 0.7
"""Share of scenes with every kind of object equally often, not mostly robots."""
ASKED = 3
"""Questions per picture and step; the vision tower runs once for them."""
WRAPPER = "USER: <image> {question} ASSISTANT: "
PLAN = Plan(
    steps=2300,
    lr=1e-3,
    slow=(("vision.", 0.1), ("project.", 0.3)),
    warmup=100,
    weight_decay=0.01,
    ema=0.99,
    log_every=50,
    save_every=200,
)
REDRAWN = 6_000
REFINE = Plan(
    steps=1300,
    lr=5e-4,
    slow=(("vision.", 0.3), ("project.", 0.5)),
    warmup=50,
    weight_decay=0.01,
    ema=0.99,
    log_every=50,
    save_every=200,
)
"""Afterwards, on pictures drawn again by the denoiser beside as many of the first pool, all with shifted colours: guidance makes colours
stronger or paler than any render, and a judge that never saw that takes a pale yellow lamp for sparks."""


def build_tokenizer() -> T5Tokenizer:
    """A unigram tokenizer (Kudo 2018) of whole words, with and without a space before them, and single characters."""
    from transformers import T5Tokenizer

    frame = Settings(wrapper=WRAPPER)
    texts = [" ".join(frame.chunks(text)) for text in all_texts()] + ["Yes", "No"] * 20
    counts: Counter[str] = Counter()
    for text in texts:
        words = re.findall(r"[A-Za-z]+", text)
        counts.update(words)
        counts.update("▁" + word for word in words)
    total = sum(counts.values())
    characters = [chr(code) for code in range(33, 127)]
    pieces = dict.fromkeys(["▁", *characters], -14.0) | {'▁"': -4.0}
    pieces |= {word: math.log(count / total) for word, count in sorted(counts.items()) if len(word) > 1}
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*special, *pieces.items()], extra_ids=0, model_max_length=512)


def language_config(vocabulary: int) -> T5Config:
    """T5 v1.1 / FLAN layout (gated GELU), two layers each way."""
    from transformers import T5Config

    return T5Config(
        vocab_size=vocabulary,
        d_model=WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )


def build(clip_folder: Path) -> ClipFlanT5:
    """A fresh judge whose vision tower starts from the trained CLIP, as LLaVA and CLIP-FlanT5 do."""
    from transformers import CLIPVisionModel, T5ForConditionalGeneration

    tokenizer = build_tokenizer()
    tower = CLIPVisionModel.from_pretrained(clip_folder, dtype=torch.float32)
    language = T5ForConditionalGeneration(language_config(len(tokenizer)))
    settings = Settings(wrapper=WRAPPER, image_size=SIZE)
    return ClipFlanT5(tower, projector(clip.WIDTH, WIDTH), language, tokenizer, settings)


@torch.no_grad()
def calibrate(judge: ClipFlanT5, images: np.ndarray) -> None:
    """Start the projector so that patches of ``images`` leave it with mean 0 and deviation 1 in every dimension.

    Word embeddings start that way too. Left to plain initialisation, training first grows a large offset that all
    patches share, and T5's norm then hides what tells them apart.
    """
    pixels = pixels_of(torch.from_numpy(images), judge.settings)
    states = judge.vision(pixel_values=pixels, output_hidden_states=True).hidden_states
    patches = states[judge.settings.hidden_state][:, 1:].flatten(0, 1)
    first, activation, second = judge.project
    torch.nn.init.orthogonal_(first.weight).div_(patches.std(dim=0))
    first.bias.copy_(-(first.weight @ patches.mean(dim=0)))
    hidden = activation(first(patches))
    outputs = hidden @ torch.nn.init.orthogonal_(second.weight).T
    second.weight.div_(outputs.std(dim=0)[:, None])
    second.bias.copy_(-outputs.mean(dim=0) / outputs.std(dim=0))


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images: np.ndarray, seed: int) -> np.ndarray:
    """``images`` through the autoencoder with a little noise on the latents: how generated pictures look."""
    torch.manual_seed(seed)
    parts = []
    for part in np.array_split(images, max(1, len(images) // 64)):
        with arithmetic():
            latents = vae.encode(ae.to_tensor(part)).latent_dist.mean.float()
            level = torch.rand(len(part), 1, 1, 1) * 0.25 / vae.config.scaling_factor
            parts.append(ae.to_pixels(vae.decode(latents + level * torch.randn_like(latents)).sample))
    return np.concatenate(parts)


def training_pool(vae: AutoencoderKL, out: Path, seed: int) -> tuple[list[Scene], np.ndarray]:
    """Scenes and pictures, two thirds of them through the autoencoder; pictures are kept in ``out/pool.safetensors``."""
    from safetensors.numpy import load_file, save_file

    rng = np.random.default_rng(seed + 31)
    scenes = [training_scene(rng, even=bool(rng.random() < EVEN_SHARE)) for _ in range(POOL)]
    path = out / "pool.safetensors"
    if path.exists():
        return scenes, load_file(path)["images"]
    images, cut = render_all(scenes), POOL * 2 // 3
    images[:cut] = round_trip(vae, images[:cut], seed)
    out.mkdir(parents=True, exist_ok=True)
    save_file({"images": images}, path)
    return scenes, images


def redrawn_pool(
    out: Path, seed: int, autoencoder: Path, clip_folder: Path, unet: Path
) -> tuple[list[Scene], np.ndarray]:
    """Scenes and pictures that the denoiser drew again; kept in ``out/redrawn.safetensors``."""
    from safetensors.numpy import load_file, save_file

    path = out / "redrawn.safetensors"
    if path.exists():
        return redraw.scenes(REDRAWN, seed + 57), load_file(path)["images"]
    pipeline = redraw.pipeline_of(autoencoder, clip_folder, unet)
    scenes, images = redraw.redrawn(pipeline, REDRAWN, seed + 57)
    save_file({"images": images}, path)
    return scenes, images


def train(
    out: Path,
    seed: int,
    autoencoder: Path,
    clip_folder: Path,
    unet: Path,
    minutes: float | None = None,
    batch: int = 32,
) -> ClipFlanT5:
    """Train on balanced yes/no questions; saves ``out/vqa``. The answers are ``Yes </s>`` and ``No </s>``."""
    from diffusers import AutoencoderKL

    keep_memory()
    torch.manual_seed(seed)
    model = build(clip_folder)
    scenes, images = training_pool(AutoencoderKL.from_pretrained(autoencoder).eval(), out, seed)
    vision.warm_up(model.vision, model.settings.hidden_state, scenes, images, out / "vision", seed)
    calibrate(model, images[:256])
    model.load_state_dict(fit(model, asking(model, scenes, images, batch), PLAN, out, seed, minutes=minutes))
    if steps_done(out) < PLAN.steps:  # out of minutes: the next call goes on from here
        return model
    smooth = build(clip_folder).eval()

    def after(_step: int, average: dict[str, torch.Tensor]) -> None:
        smooth.load_state_dict(average)
        smooth.save(out / "vqa")

    again, drawn = redrawn_pool(out, seed, autoencoder, clip_folder, unet)
    half = (
        POOL * 2 // 3 - REDRAWN // 2
    )  # the place where the pool goes over from decoded pictures to plain renders
    scenes, images = (
        again + scenes[half : half + REDRAWN],
        np.concatenate([drawn, images[half : half + REDRAWN]]),
    )
    refining = asking(model, scenes, images, batch, shift_colours)
    model.load_state_dict(fit(model, refining, REFINE, out / "refine", seed + 1, after, minutes))
    model.eval().save(out / "vqa")
    return model


def asking(
    model: ClipFlanT5,
    scenes: list[Scene],
    images: np.ndarray,
    batch: int,
    change: Callable[[torch.Tensor, np.random.Generator], torch.Tensor] | None = None,
) -> Callable[[int, np.random.Generator], dict[str, torch.Tensor]]:
    """The loss of ``ASKED`` questions about each of ``batch`` pictures; ``change`` acts on their pixels first."""
    answers = torch.tensor([model.tokenizer(word)["input_ids"] for word in ("No", "Yes")])

    def loss_of(_step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        chosen = rng.integers(len(images), size=batch)
        pixels = torch.from_numpy(images[chosen]).permute(0, 3, 1, 2).float() / 255
        flip = torch.from_numpy(rng.random(batch) < 0.5)
        pixels[flip] = pixels[flip].flip(-1)
        pixels = change(pixels, rng) if change else pixels
        pixels = clip.normalise(clip.roughen(pixels, rng))
        asked = [draw_question(scenes[index], rng) for index in chosen for _ in range(ASKED)]
        truth = torch.tensor([int(answer) for _, answer in asked])
        with arithmetic():
            features = model.patches(pixels).repeat_interleave(ASKED, dim=0)
            logits = model.answer_logits(features, [text for text, _ in asked], answers[truth])
        loss = functional.cross_entropy(logits.transpose(1, 2), answers[truth])
        first = logits[:, 0].detach()
        right = ((first[:, answers[1, 0]] > first[:, answers[0, 0]]) == truth.bool()).float().mean()
        return {"loss": loss, "right": right}

    return loss_of


def shift_colours(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Saturation, contrast and brightness of each picture (``[n, 3, h, w]`` in [0, 1]) changed by random amounts; a fifth stay."""
    count = len(pixels)
    spread = torch.from_numpy((rng.random(count) > 0.2).astype(np.float32))

    def drawn(low: float, high: float) -> torch.Tensor:
        return (torch.from_numpy(rng.uniform(low, high, count).astype(np.float32)) * spread).view(-1, 1, 1, 1)

    grey = pixels.mean(dim=1, keepdim=True)
    out = grey + (pixels - grey) * (1 + drawn(-0.35, 0.5))
    out = (out - 0.5) * (1 + drawn(-0.25, 0.3)) + 0.5 + drawn(-0.1, 0.1)
    return out.clamp(0, 1)


def examine(
    judge: ClipFlanT5, scenes: list[Scene], images: np.ndarray, threshold: float = 0.5
) -> dict[str, dict]:
    """Accuracy, recall and false-positive rate per theme on pictures of known truth, with their counts.

    The question is the theme's joined keywords. Scenes under a glitch are not asked for other themes.
    """
    features = judge.encode_images(torch.from_numpy(images))
    scores = judge.score(features, [joined(theme) for theme in THEMES]).numpy()
    glitched = np.array([labels_of(scene).themes["glitch"] for scene in scenes])
    result = {}
    for column, theme in enumerate(THEMES):
        truth = np.array([labels_of(scene).themes[theme] for scene in scenes])
        counted = np.ones(len(scenes), bool) if theme == "glitch" else ~glitched
        said, shown = scores[counted, column] > threshold, truth[counted]
        result[theme] = {
            "accuracy": float((said == shown).mean()),
            "recall": float(said[shown].mean()),
            "false_positive_rate": float(said[~shown].mean()),
            "n": int(counted.sum()),
            "n_shown": int(shown.sum()),
        }
    return result
