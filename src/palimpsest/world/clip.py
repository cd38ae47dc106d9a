"""CLIP for the micro world: text tower (the pipeline's text encoder) and vision transformer, trained contrastively."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from palimpsest.world import tokenizer as bpe
from palimpsest.world.captions import Example, training_example
from palimpsest.world.render import render_all
from palimpsest.world.training import Plan, arithmetic, fit
from palimpsest.world.vocab import SIZE

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

WIDTH = 128
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""OpenAI CLIP's channel means and deviations, for RGB in [0, 1]."""
POOL = 40_000
PLAN = Plan(steps=560, lr=1e-3, warmup=60, weight_decay=0.05, ema=0.99, log_every=20, save_every=100)


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A fresh CLIP (about 1.7 M parameters) for ``tokenizer``'s vocabulary."""
    from transformers import CLIPConfig, CLIPModel

    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = (
        tower
        | ends
        | {"vocab_size": len(tokenizer), "max_position_embeddings": bpe.LENGTH, "projection_dim": WIDTH}
    )
    vision = tower | {"image_size": SIZE, "patch_size": 8, "projection_dim": WIDTH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def captions(count: int, seed: int) -> list[Example]:
    """``count`` captioned scenes of the mixture."""
    rng = np.random.default_rng(seed)
    return [training_example(rng) for _ in range(count)]


def examples(count: int, seed: int) -> tuple[list[Example], np.ndarray]:
    """The same with their renders ``[count, 64, 64, 3]``."""
    made = captions(count, seed)
    return made, render_all([example.scene for example in made])


def normalise(images: torch.Tensor) -> torch.Tensor:
    """RGB in [0, 1], ``[n, 3, h, w]``, to CLIP's input scale."""
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    return (images - mean) / torch.tensor(STD, device=images.device).view(1, 3, 1, 1)


def roughen(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Blur a third and add noise to a third of ``images`` (``[n, 3, h, w]`` in [0, 1]): a generator's flaws."""
    count = len(images)
    out = images.clone()
    blurred = torch.from_numpy(rng.random(count) < 0.33)
    out[blurred] = functional.avg_pool2d(
        functional.pad(out[blurred], (1, 1, 1, 1), mode="replicate"), 3, stride=1
    )
    noisy = torch.from_numpy(rng.random(count) < 0.33)
    noise = torch.from_numpy(rng.standard_normal((int(noisy.sum()), *images.shape[1:]), dtype=np.float32))
    out[noisy] += noise * float(rng.uniform(0.02, 0.08))
    return out.clamp(0, 1)


def tokens_of(tokenizer: CLIPTokenizer, texts: list[str], length: int | None = None) -> torch.Tensor:
    """Token ids padded with the end token to ``length`` (default: the longest text): int64 ``[n, length]``."""
    padding = "max_length" if length else "longest"
    batch = tokenizer(
        texts, padding=padding, truncation=True, max_length=length or bpe.LENGTH, return_tensors="pt"
    )
    return batch["input_ids"]


def contrastive_loss(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, same: torch.Tensor
) -> torch.Tensor:
    """Symmetric InfoNCE (Radford et al. 2021) over unit embeddings; pairs with the ``same`` caption all count."""
    logits = scale.exp().clamp(max=100) * image @ text.T
    target = same / same.sum(dim=1, keepdim=True)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def train(out: Path, seed: int, minutes: float | None = None, batch: int = 128) -> CLIPModel:
    """Train and save ``out/clip`` (full model with tokenizer and image processor) and ``out/tokenizer``."""
    torch.manual_seed(seed)
    tokenizer = bpe.build(seed)
    bpe.save(tokenizer, out / "tokenizer")
    model = build(tokenizer)
    made, images = examples(POOL, seed + 11)
    texts = [example.text for example in made]
    ids = tokens_of(tokenizer, texts, bpe.LENGTH)
    lengths = (ids != tokenizer.eos_token_id).sum(dim=1) + 1
    _, group = np.unique(np.array(texts), return_inverse=True)

    def loss_of(_step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        chosen = rng.integers(POOL, size=batch)
        pixels = torch.from_numpy(images[chosen]).permute(0, 3, 1, 2).float() / 255
        flip = torch.from_numpy(rng.random(batch) < 0.5)
        pixels[flip] = pixels[flip].flip(-1)
        pixels = normalise(roughen(pixels, rng))
        short = ids[chosen][:, : int(lengths[chosen].max())]
        with arithmetic():
            result = model(input_ids=short, pixel_values=pixels)
        names = torch.from_numpy(group[chosen])
        same = (names[:, None] == names[None, :]).float()
        image, text = result.image_embeds.float(), result.text_embeds.float()
        loss = contrastive_loss(image, text, model.logit_scale, same)
        hit = same.gather(1, (image @ text.T).argmax(dim=1, keepdim=True)).mean()
        return {"loss": loss, "hit": hit}

    model.load_state_dict(fit(model, loss_of, PLAN, out, seed, minutes=minutes))
    save(model, tokenizer, out / "clip")
    return model


def save(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the whole CLIP with tokenizer and image processor."""
    from transformers import CLIPImageProcessor

    model.save_pretrained(folder, safe_serialization=True)
    bpe.save(tokenizer, folder)
    processor = CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=MEAN,
        image_std=STD,
    )
    processor.save_pretrained(folder)


@torch.no_grad()
def zero_shot(model: CLIPModel, tokenizer: CLIPTokenizer, images: np.ndarray, texts: list[str]) -> np.ndarray:
    """Cosine similarity of every image ``[n, h, w, 3]`` and text: float32 ``[n, texts]``."""
    pixels = normalise(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    image = functional.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    features = model.get_text_features(input_ids=tokens_of(tokenizer, texts)).pooler_output
    return (image @ functional.normalize(features, dim=-1).T).numpy()
