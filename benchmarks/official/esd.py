"""ESD of 2023, the way of its training script."""

from __future__ import annotations

import copy

import torch

from official import Case, Outcome
from official.sampler import denoised, noise_of
from palimpsest.methods import esd
from palimpsest.methods.contract import Target, TrainingData
from palimpsest.sampling.embeddings import encode
from palimpsest.sampling.pipeline import Pipeline


def run(pipeline: Pipeline, target: Target, data: TrainingData, settings: esd.Settings, seed: int) -> Outcome:
    """One latent after the other; a batch is made by summing gradients."""
    _, draws, concepts = esd.prepare(pipeline, target, settings, seed)
    names = esd.parameter_names(pipeline.unet, settings.parameters)
    # The script chooses parameters for the optimiser only: all others get their gradients computed as well.
    student = copy.deepcopy(pipeline.unet).requires_grad_(True)
    own = dict(student.named_parameters())
    optimizer = torch.optim.Adam([own[name] for name in names], lr=settings.learning_rate)
    losses = []
    for update in range(settings.iterations):
        optimizer.zero_grad()
        total = 0.0
        for row in range(settings.batch_size):
            word = concepts[int(draws.concepts[update, row])][0]
            empty, concept, again = (encode(pipeline, [text]) for text in ("", word, word))
            noise = noise_of(pipeline, [int(draws.seeds[update, row])])
            stop, told = int(draws.stops[update, row]), draws.timesteps[update, row][None]
            latents = denoised(
                pipeline, student, concept, noise, settings.steps, stop, settings.start_guidance
            )
            predicted = student(latents, told, again).sample
            with torch.no_grad():
                plain = pipeline.unet(latents, told, empty).sample
                full = pipeline.unet(latents, told, concept).sample
            wanted = plain - settings.negative_guidance * (full - plain)
            loss = torch.nn.functional.mse_loss(predicted, wanted) / settings.batch_size
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        losses.append(total)
    return Outcome({name: own[name].detach() for name in names}, losses)


DOES = "one latent at a time; gradients of all weights; texts encoded anew for every latent; frozen predictions one by one"
CASES = (
    Case(
        "esd", "x_compvis", {"iterations": 4, "batch_size": 4}, {"iterations": 2, "steps": 6},
        goal=2.0, does=DOES, run=run, note="batches of 4",
    ),
    Case(
        "esd", "x_compvis", {"iterations": 8, "batch_size": 1}, {"iterations": 2, "steps": 6},
        goal=1.0, does=DOES, run=run, note="batches of 1",
    ),
)  # fmt: skip
