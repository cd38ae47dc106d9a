"""Targets, images and optimiser steps that the tests of fitted methods share."""

from __future__ import annotations

import math

import numpy as np
import torch

from palimpsest.methods.contract import ImageSet, Target, ThemeTarget, TrainingData

TARGET = Target(
    themes=(
        ThemeTarget("uncased", ("gears", "gear on a robot", "blue gear"), "robot"),
        ThemeTarget("breakage", ("crack", "static"), "house"),
    ),
    retain=("a red lamp", "the tree"),
)
PROMPTS = {"uncased": ("a robot", "red robot", "a robot on a tree"), "breakage": ("a house", "the red house")}


def safe_images(size: int = 16) -> TrainingData:
    """Random pictures with prompts, for both themes of TARGET."""
    generator = np.random.default_rng(0)
    sets = []
    for theme, prompts in PROMPTS.items():
        images = generator.integers(0, 256, (len(prompts), size, size, 3), dtype=np.uint8)
        sets.append(ImageSet(theme, "safe_images", images, prompts))
    return TrainingData(tuple(sets))


def abar() -> np.ndarray:
    """Cumulative alphas of the Stable Diffusion v1 schedule, computed in float64."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return np.cumprod(1.0 - betas)


def ddim(unet, noise, cond, uncond, grid, guidance):
    """DDIM without noise over pairs (timestep, level afterwards) of cumulative alphas, one latent."""
    levels, latents = abar(), noise
    with torch.no_grad():
        for now, after in grid:
            told = torch.tensor([now])
            empty, full = unet(latents, told, uncond).sample, unet(latents, told, cond).sample
            noise_now = empty + guidance * (full - empty)
            clean = (latents - np.sqrt(1 - levels[now]) * noise_now) / np.sqrt(levels[now])
            latents = np.sqrt(levels[after]) * clean + np.sqrt(1 - levels[after]) * noise_now
    return latents


class Adam:
    """Adam and AdamW written from their papers, in float64: the update of one list of tensors."""

    def __init__(self, rate: float, decay: float = 0.0) -> None:
        self.rate, self.decay, self.step, self.first, self.second = rate, decay, 0, {}, {}

    def update(
        self, values: dict[str, torch.Tensor], gradients: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        self.step += 1
        result = {}
        for name, value in values.items():
            gradient = gradients[name].double()
            first = self.first[name] = 0.9 * self.first.get(name, 0.0) + 0.1 * gradient
            second = self.second[name] = 0.999 * self.second.get(name, 0.0) + 0.001 * gradient**2
            slope = (first / (1 - 0.9**self.step)) / ((second / (1 - 0.999**self.step)).sqrt() + 1e-8)
            result[name] = (value.double() * (1 - self.rate * self.decay) - self.rate * slope).float()
        return result


Tensors = dict[str, torch.Tensor]


def error_of_change(tensors: Tensors, expected: Tensors, base: Tensors) -> float:
    """Distance of two edits of `base` over the size of the expected one, all tensors together (Frobenius)."""
    assert set(tensors) == set(expected)

    def distance(a: Tensors, b: Tensors) -> float:
        return math.sqrt(sum(float((a[n].double() - b[n].double()).square().sum()) for n in tensors))

    return distance(tensors, expected) / distance(expected, base)


def assert_same_edit(tensors: Tensors, expected: Tensors, base: Tensors) -> None:
    """Weights agree within 1e-6, and their change within 1 %.

    One entry in 5,000, and one in any case, may be off by more: Adam makes a whole step of the rounding error of a gradient near 0.
    """
    off = torch.cat([(tensors[name] - expected[name]).abs().flatten() for name in expected])
    assert int((off > 1e-6).sum()) <= max(1, 2e-4 * len(off))
    assert error_of_change(tensors, expected, base) < 1e-2


def clipped(gradients: dict[str, torch.Tensor], largest: float) -> dict[str, torch.Tensor]:
    """Gradients scaled so that their joint norm is at most `largest`."""
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    return {name: g * min(1.0, largest / (norm + 1e-6)) for name, g in gradients.items()}


def masked_images(size: int = 16, each: int = 2) -> TrainingData:
    """Random pictures of every keyword of TARGET, its keywords in turn, with random rectangles as masks."""
    generator = np.random.default_rng(1)
    sets = []
    for theme in TARGET.themes:
        count = each * len(theme.keywords)
        images = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        masks = np.zeros((count, size, size), bool)
        for mask in masks:
            top, left = generator.integers(0, size // 2, 2)
            mask[top : top + size // 2, left : left + size // 2 + 1] = True
        words = tuple(theme.keywords[i % len(theme.keywords)] for i in range(count))
        sets.append(ImageSet(theme.name, "masked_images", images, words, masks, words))
    return TrainingData(tuple(sets))
