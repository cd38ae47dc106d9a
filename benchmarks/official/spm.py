"""SPM, the way of its training script."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.nn.functional import mse_loss

from official import Case, Outcome
from palimpsest.methods import _adapters, spm
from palimpsest.methods._training import generator, normal
from palimpsest.methods.contract import Target, TrainingData
from palimpsest.sampling.embeddings import encode
from palimpsest.sampling.pipeline import Pipeline


class Network:
    """A frozen UNet whose layers have branches of their own modules, always evaluated, times 1 or 0."""

    def __init__(self, unet: Any, start: Mapping[str, Tensor], scale: float) -> None:
        self.unet, self.parts, self.factor = copy.deepcopy(unet).requires_grad_(False), {}, 0.0
        for name, layer in _adapters.layers(self.unet).items():
            first, last = start[f"{name}.down"], start[f"{name}.up"]
            if isinstance(layer, torch.nn.Conv2d):
                down = torch.nn.Conv2d(
                    layer.in_channels, len(first), layer.kernel_size, layer.stride, layer.padding, bias=False
                )
                up = torch.nn.Conv2d(len(first), layer.out_channels, 1, bias=False)
            else:
                down = torch.nn.Linear(layer.in_features, len(first), bias=False)
                up = torch.nn.Linear(len(first), layer.out_features, bias=False)
            down.weight.data, up.weight.data = first.clone(), last.reshape(up.weight.shape).clone()
            self.parts[name] = (down.to(unet.device), up.to(unet.device))
            layer.forward = self._forward(layer.forward, name, scale)

    def _forward(self, own: Any, name: str, scale: float) -> Any:
        down, up = self.parts[name]
        return lambda x: own(x) + up(down(x)) * self.factor * scale

    @contextmanager
    def on(self) -> Iterator[None]:
        self.factor = 1.0
        yield
        self.factor = 0.0

    def tensors(self) -> dict[str, Tensor]:
        found = {}
        for name, (down, up) in self.parts.items():
            found[f"{name}.down"], found[f"{name}.up"] = down.weight, up.weight.flatten(1)
        return {name: tensor.detach()[None] for name, tensor in found.items()}


def predicted(unet: Any, latents: Tensor, told: Any, texts: Tensor, guidance: float) -> Tensor:
    """The guided prediction; the empty prompts are the first half of `texts`, and evaluated for guidance 1 too."""
    plain, full = unet(torch.cat([latents] * 2), told, texts).sample.chunk(2)
    return plain + guidance * (full - plain)


class Script:
    """One sample at a time; batches of more are means of their samples."""

    def __init__(
        self, pipeline: Pipeline, settings: spm.Settings, network: Network, draws: spm.Draws
    ) -> None:
        self.pipeline, self.settings, self.network, self.draws = pipeline, settings, network, draws
        quirk = {"steps_offset": 0, "set_alpha_to_one": True, "clip_sample": False}
        config = {**pipeline.scheduler.config, **quirk, "timestep_spacing": "leading"}
        self.scheduler = DDIMScheduler.from_config(config)

    def loss(self, update: int, row: int, concept: Tensor, empty: Tensor) -> Tensor:
        settings, unet, network = self.settings, self.network.unet, self.network
        draws, pair = self.draws, torch.cat([empty, concept])
        shape = (unet.config.in_channels, *draws.sizes[update].tolist())
        latents = normal([int(draws.seeds[update, row])], shape).to(concept.device)
        stop = int(draws.stops[update, row])
        self.scheduler.set_timesteps(settings.steps)
        with torch.no_grad(), network.on():
            for now in self.scheduler.timesteps[:stop]:
                noise = predicted(unet, latents, now, pair, settings.start_guidance)
                latents = self.scheduler.step(noise, now, latents).prev_sample
        self.scheduler.set_timesteps(1000)
        told = self.scheduler.timesteps[stop * 1000 // settings.steps]
        with torch.no_grad():
            positive = predicted(unet, latents, told, pair, 1.0)
            neutral = predicted(unet, latents, told, torch.cat([empty, empty]), 1.0)
        with network.on():
            ours = predicted(unet, latents, told, pair, 1.0)
        made = [spm.anchor(concept[0], int(s)).to(concept) for s in draws.anchors[update, row]]
        anchors = torch.cat([text for one in made for text in (empty, one[None])])
        many = latents.repeat(len(made), 1, 1, 1)
        with network.on():
            held = predicted(unet, many, told, anchors, 1.0)
        with torch.no_grad():
            wanted = predicted(unet, many, told, anchors, 1.0)
        erase = mse_loss(ours, neutral - settings.negative_guidance * (positive - neutral))
        return erase + settings.la_strength * mse_loss(held, wanted)


def run(pipeline: Pipeline, target: Target, data: TrainingData, settings: spm.Settings, seed: int) -> Outcome:
    """Written for one set of branches, the empty prompt as neutral text, and everything as the script has it."""
    if settings.adapter_mode == "per_keyword" or settings.neutral or settings.anchors != "official":
        raise ValueError("the official way is written for preset paper")
    (pairs,) = spm.concepts_of(target, settings)
    start = _adapters.initial(pipeline.unet, settings.rank, generator(seed, "spm branches 0"))
    network = Network(pipeline.unet, start, settings.alpha / settings.rank)
    draws = spm.draw(settings, len(pairs), spm.sides(pipeline.unet, settings), generator(seed, "spm 0"))
    script, empty = Script(pipeline, settings, network, draws), encode(pipeline, [""])
    concepts = [encode(pipeline, [concept]) for concept, _ in pairs]
    own = [weight for part in network.parts.values() for layer in part for weight in layer.parameters()]
    optimizer = torch.optim.AdamW(own, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    losses = []
    for update in range(settings.iterations):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * spm.rate_factor(update, settings)
        optimizer.zero_grad()
        total = 0.0
        for row in range(settings.batch_size):
            concept = concepts[int(draws.concepts[update, row])]
            loss = script.loss(update, row, concept, empty) / settings.batch_size
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        losses.append(total)
    return Outcome(network.tensors(), losses, {name: tensor[None] for name, tensor in start.items()})


DOES = (
    "one evaluation for each of the concept, the neutral text and the anchors, with and without branches; the empty prompt "
    "beside each of them; branches evaluated beside the layers in sampling too; two random anchors that do not count"
)
CASES = (
    Case(
        "spm", "paper", {"iterations": 4}, {"iterations": 2, "steps": 6}, goal=2.0, does=DOES, run=run,
        note="batches of 1",
    ),
    Case(
        "spm", "paper", {"iterations": 4, "batch_size": 4}, {"iterations": 2, "steps": 6}, goal=2.0, does=DOES,
        run=run, note="batches of 4",
    ),
)  # fmt: skip
