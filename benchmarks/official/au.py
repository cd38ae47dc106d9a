"""AdvUnlearn, the way of its training script."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from official import Case, Outcome
from official.sampler import denoised, noise_of
from palimpsest.methods import au
from palimpsest.methods._bank import Sample
from palimpsest.methods._rounds import Round
from palimpsest.methods._soft_prompt import encode_prefixed, prefix_layout
from palimpsest.methods.contract import Target, TrainingData
from palimpsest.sampling.embeddings import encode, token_ids
from palimpsest.sampling.pipeline import Pipeline


@dataclass
class Script:
    """What the script keeps: a UNet whose weights all ask for gradients, and the text encoder in training."""

    pipeline: Pipeline
    settings: au.Settings
    texts: Sequence[str]
    kept: Sequence[int]
    unet: Any
    student: Any

    def embedded(self, ids: Tensor) -> Tensor:
        """Token embeddings [N, 77, D], by a product with one-hot rows as wide as the vocabulary."""
        table = self.student.get_input_embeddings().weight
        rows = torch.nn.functional.one_hot(ids.view(-1), len(table)).to(table.dtype)
        return (rows @ table).view(*ids.shape, -1)

    def text(self, index: int, prefix: Tensor | None) -> Tensor:
        """The student's embedding [1, 77, D] of a text, behind a prefix when there is one."""
        ids = token_ids(self.pipeline, [self.texts[index]])[0].to(self.student.device)
        if prefix is not None:
            ids = prefix_layout(ids, self.kept[index], len(prefix))
        vectors = self.embedded(ids[None])[0, 1:]
        if prefix is not None:
            vectors = torch.cat([prefix, vectors[len(prefix) :]])
        return encode_prefixed(self.student, ids[None], vectors)

    def frozen(self, samples: Sequence[Sample], empty: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        """A latent of samples that stop together, its timestep, and e*(0) and e*(text), one call each."""
        settings, pipeline = self.settings, self.pipeline
        cond = encode(pipeline, [self.texts[sample.text] for sample in samples])
        noise = noise_of(pipeline, [sample.seed for sample in samples])
        latents = denoised(
            pipeline, pipeline.unet, cond, noise, settings.steps, samples[0].stop, settings.start_guidance
        )
        told = torch.tensor([sample.timestep for sample in samples], device=noise.device)
        texts = [encode(pipeline, [""]), cond] if empty else [cond]
        with torch.no_grad():
            predictions = [
                pipeline.unet(latents, told, text.expand(len(noise), -1, -1)).sample for text in texts
            ]
        return latents, told, predictions

    def attack(self, drawn: Round, start: Tensor) -> Tensor:
        """30 steps on one latent each; e*(0) is computed and not used."""
        self.student.requires_grad_(False)
        prefix = start.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([prefix], lr=self.settings.attack_learning_rate)
        used = prefix
        for samples in drawn.attack:
            latents, told, (_, full) = self.frozen(samples, empty=True)
            used = prefix.detach().clone()
            predicted = self.unet(latents, told, self.text(drawn.concept, prefix)).sample
            torch.nn.functional.mse_loss(predicted, full).backward()
            optimizer.step()
        self.student.requires_grad_(True)
        return used

    def erase(self, drawn: Round, prefix: Tensor | None) -> Tensor:
        latents, told, (plain, full) = self.frozen(drawn.erase, empty=True)
        predicted = self.unet(latents, told, self.text(drawn.concept, prefix)).sample
        wanted = plain - self.settings.negative_guidance * (full - plain)
        return torch.nn.functional.mse_loss(predicted, wanted)

    def retain(self, samples: Sequence[Sample]) -> Tensor:
        latents, told, (full,) = self.frozen(samples, empty=False)
        texts = torch.cat([self.text(sample.text, None) for sample in samples])
        return torch.nn.functional.mse_loss(self.unet(latents, told, texts).sample, full)


def run(pipeline: Pipeline, target: Target, data: TrainingData, settings: au.Settings, seed: int) -> Outcome:
    """Latent by latent, as they are needed (the five of a retaining update together, as there)."""
    if settings.batch_size != 1 or settings.retain_mode != "iter" or settings.attack != "pgd":
        raise ValueError(
            "the official way is written for preset official: batch_size 1, retain_mode iter, attack pgd"
        )
    concepts, retained, kept = au.texts_of(pipeline, target, settings)
    rounds = au.draw_rounds(pipeline, settings, len(concepts), len(retained), seed)
    student = copy.deepcopy(pipeline.text_encoder).requires_grad_(True)
    unet = copy.deepcopy(pipeline.unet).requires_grad_(True)
    script = Script(pipeline, settings, [*concepts, *retained], kept, unet, student)
    names = au.parameter_names(student)
    own = dict(student.named_parameters())
    optimizer = torch.optim.Adam([own[name] for name in names], lr=settings.learning_rate)
    prefix, losses = None, []
    for drawn in rounds:
        if drawn.attack:
            start = prefix if prefix is not None and settings.attack_init == "latest" else None
            if start is None:
                start = script.embedded(torch.tensor([list(drawn.start)], device=student.device))[0]
            prefix = script.attack(drawn, start)
        optimizer.zero_grad()
        loss = script.erase(drawn, prefix)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
        for samples in drawn.retain:
            optimizer.zero_grad()
            script.retain(samples).backward()
            optimizer.step()
    return Outcome({name: own[name].detach() for name in names}, losses)


CASES = (
    # Two attacked updates: 60 + 2 latents, and 2 times 5 to retain, which is the mixture of the whole recipe.
    Case(
        "au", "official", {"iterations": 2, "warmup_iterations": 0},
        {"steps": 6, "attack_steps": 3}, goal=8.0, run=run,
        does="one latent at a time, as it is needed; gradients of all weights of the UNet, in attacks too; e*(0) for attacks, "
        "which do not use it; texts encoded anew for every latent; token embeddings by one-hot products",
    ),
)  # fmt: skip
