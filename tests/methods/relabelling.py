"""What the tests of SalUn and EraseDiff share: image sets, and both losses written from their formulas."""

from __future__ import annotations

import numpy as np
import torch

from palimpsest.methods.contract import ImageSet, TrainingData
from tests.methods.erasing import PROMPTS, abar

UNSAFE = {
    "uncased": ("gears", "a photo of gear on a robot", "the blue gear", "Gears on a tree"),
    "breakage": ("crack", "static on the tree", "a house with a crack"),
}
# What the captions above become for the surrogates "robot" and "house".
HARMLESS = (
    ("robot", "a photo of robot", "the robot", "robot on a tree"),
    ("house", "house on the tree", "a house with a house"),
)


def image_sets(size: int = 16) -> TrainingData:
    """Random pictures: seven unsafe ones and five safe ones, of both themes of TARGET."""
    generator, sets = np.random.default_rng(3), []
    for role, prompts_of in (("target_images", UNSAFE), ("safe_images", PROMPTS)):
        for theme, prompts in prompts_of.items():
            images = generator.integers(0, 256, (len(prompts), size, size, 3), dtype=np.uint8)
            sets.append(ImageSet(theme, role, images, prompts))
    return TrainingData(tuple(sets))


class Formulas:
    """Both losses of a pipeline on `image_sets`, one sample at a time, with the recorded draws."""

    def __init__(self, pipeline, posterior="samples", surrogate=None):
        self.pipeline, self.wide = pipeline, posterior == "samples"
        self.velocity = pipeline.scheduler.config.prediction_type == "v_prediction"
        sets = {role: image_sets().role(role) for role in ("target_images", "safe_images")}
        self.images = {role: np.concatenate([part.images for part in parts]) for role, parts in sets.items()}
        self.bad = [prompt for part in UNSAFE.values() for prompt in part]
        self.good = [surrogate or prompt for part in HARMLESS for prompt in part]
        self.own = [prompt for part in PROMPTS.values() for prompt in part]

    def text(self, prompt):
        with torch.no_grad():
            ids = self.pipeline.tokenizer(prompt)["input_ids"]
            padded = torch.tensor([ids + [self.pipeline.tokenizer.eos_token_id] * (77 - len(ids))])
            return self.pipeline.text_encoder(padded).last_hidden_state

    def latents(self, role, index, normal):
        pixels = torch.tensor(self.images[role][index] / 127.5 - 1.0, dtype=torch.float32)
        with torch.no_grad():
            posterior = self.pipeline.vae.encode(pixels.permute(2, 0, 1)[None]).latent_dist
        return 0.18215 * (posterior.mean + self.wide * torch.exp(0.5 * posterior.logvar) * normal[None])

    def noised(self, latents, noise, time):
        level = abar()[time]
        return np.sqrt(level) * latents + np.sqrt(1 - level) * noise[None]

    def asked(self, latents, noise, time):
        """What the denoising loss compares with."""
        level = abar()[time]
        velocity = np.sqrt(level) * noise[None] - np.sqrt(1 - level) * latents
        return velocity if self.velocity else noise[None]

    def forget(self, unet, draws, update):
        """L_f of one update, as a tensor."""
        total, count = 0.0, draws.forget.shape[1]
        for index, time, seed in zip(
            draws.forget[update].tolist(),
            draws.forget_times[update].tolist(),
            draws.forget_seeds[update].tolist(),
            strict=True,
        ):
            first, second, noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
            told = torch.tensor([time])
            bad = self.noised(self.latents("target_images", index, first), noise, time)
            good = self.noised(self.latents("target_images", index, second), noise, time)
            with torch.no_grad():
                wanted = unet(good, told, self.text(self.good[index])).sample
            predicted = unet(bad, told, self.text(self.bad[index])).sample
            total = total + ((predicted - wanted) ** 2).mean() / count
        return total

    def remain(self, unet, draws, update):
        """L_r of one update, as a tensor."""
        total, count = 0.0, draws.remain.shape[1]
        for index, time, seed in zip(
            draws.remain[update].tolist(),
            draws.remain_times[update].tolist(),
            draws.remain_seeds[update].tolist(),
            strict=True,
        ):
            first, noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
            latents = self.latents("safe_images", index, first)
            shown = self.noised(latents, noise, time)
            predicted = unet(shown, torch.tensor([time]), self.text(self.own[index])).sample
            total = total + ((predicted - self.asked(latents, noise, time)) ** 2).mean() / count
        return total


def gradient(unet, names, loss):
    """Gradients of a loss for the named parameters; zeros where it does not depend on one."""
    own = dict(unet.named_parameters())
    found = torch.autograd.grad(loss, [own[name] for name in names], allow_unused=True)
    return {n: torch.zeros_like(own[n]) if g is None else g for n, g in zip(names, found, strict=True)}


def whole(tensors, base, names):
    """The trained weights of an artifact, those it leaves out being as they were."""
    assert set(tensors) <= set(names)
    return {name: tensors.get(name, base[name]) for name in names}
