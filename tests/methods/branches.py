"""Side branches and DDIM written out for the tests of SPM and ACE: nothing here uses the code under test."""

from __future__ import annotations

import copy
import re

import numpy as np
import torch

from tests.methods.erasing import abar

LAYER = re.compile(
    r".*\.attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.\d+\."
    r"(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2)))"
)


def layer_names(unet):
    """Names of the layers that get branches, from the structure of the transformer blocks of diffusers."""
    names = [name.removesuffix(".weight") for name, _ in unet.named_parameters() if name.endswith(".weight")]
    return [name for name in names if LAYER.fullmatch(name)]


def with_branches(unet, tensors, scale):
    """A copy whose layers give  W x + scale B A x,  one forward method replaced after the other.

    tensors: "<layer>.down" [r, in(, 1, 1)] and "<layer>.up" [out, r].
    """
    unet = copy.deepcopy(unet)

    def replace(module, down, up):
        plain = module.forward

        def forward(x, *args):
            if x.ndim == 4 and isinstance(module, torch.nn.Conv2d):
                inner = torch.einsum("ri,bihw->brhw", down.flatten(1), x)
                return plain(x) + scale * torch.einsum("or,brhw->bohw", up, inner)
            return plain(x) + scale * (x @ down.T) @ up.T

        module.forward = forward

    modules = dict(unet.named_modules())
    for name in layer_names(unet):
        replace(modules[name], tensors[f"{name}.down"], tensors[f"{name}.up"])
    return unet


def text(pipeline, prompt):
    """Embedding [1, 77, D]."""
    with torch.no_grad():
        ids = pipeline.tokenizer(prompt)["input_ids"]
        padded = torch.tensor([ids + [pipeline.tokenizer.eos_token_id] * (77 - len(ids))])
        return pipeline.text_encoder(padded).last_hidden_state


def noise_of(seed, height, width):
    return torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(int(seed)))


def ddim_from_zero(unet, noise, cond, uncond, steps, stops):
    """DDIM over the timesteps 0, d, 2 d, ... from the top, guidance 3: the latent after `stops` steps.

    Below timestep 0 lies the clean image.
    """
    levels, apart, latents = abar(), 1000 // steps, noise
    with torch.no_grad():
        for now in [apart * k for k in range(steps)][::-1][:stops]:
            after = levels[now - apart] if now >= apart else 1.0
            told = torch.tensor([now])
            empty, full = unet(latents, told, uncond).sample, unet(latents, told, cond).sample
            noise_now = empty + 3.0 * (full - empty)
            clean = (latents - np.sqrt(1 - levels[now]) * noise_now) / np.sqrt(levels[now])
            latents = np.sqrt(after) * clean + np.sqrt(1 - after) * noise_now
    return latents


def released(unet, noise, cond, uncond, pipeline, steps, stops):
    """The checkpoint's own sampler with guidance 3, one sample alone."""
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    latents = noise * scheduler.init_noise_sigma
    with torch.no_grad():
        for timestep in scheduler.timesteps[:stops]:
            empty, full = unet(latents, timestep, uncond).sample, unet(latents, timestep, cond).sample
            latents = scheduler.step(empty + 3.0 * (full - empty), timestep, latents).prev_sample
    return latents
