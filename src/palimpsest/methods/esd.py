"""ESD, Erasing Concepts from Diffusion Models: fine-tune the UNet towards a negatively guided prediction of
the frozen one.

With the frozen prediction e*, the concept c and the empty prompt 0, the student's prediction for c at a
partly denoised latent is trained on

    e*(0) - eta (e*(c) - e*(0))    (paper and official code of 2023, `anchor` "empty")
    e*(f) - eta (e*(c) - e*(0))    (official code of 2025, `anchor` "concept"; f is c unless `erase_from` is
    set)

so that eta means one more with the second (Gandikota et al., ICCV 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from palimpsest.methods._stops import StopRule, check
from palimpsest.methods.contract import Artifact, Info, Target, TrainingData

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from palimpsest.sampling.pipeline import Pipeline
    from palimpsest.specs import Sampler

INFO = Info(
    name="esd",
    title="ESD",
    stage="fine-tuning",
    trains="UNet: cross-attention (x) or everything else (u)",
    fits=True,
    paper="https://arxiv.org/abs/2303.07345",
    bibtex="@inproceedings{gandikota2023erasing, title={Erasing Concepts from Diffusion Models}, "
    "author={Gandikota, Rohit and Materzy{\\'n}ska, Joanna and Fiotto-Kaufman, Jaden and Bau, David}, "
    "booktitle={International Conference on Computer Vision}, year={2023}}",
    code="https://github.com/rohitgandikota/erasing",
    licence="MIT",
    fidelity="reimplemented from code",
    architectures=("sd1", "sd2", "sdxl"),
)

Parameters = Literal["xattn", "noxattn", "selfattn", "full", "esd-x", "esd-u", "esd-all", "esd-x-strict"]


class Settings(BaseModel):
    """Knobs of ESD; the presets hold the values of the two official scripts, the defaults those of 2023."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: Parameters = Field(
        "xattn",
        description="What is trained, in the official names: xattn, noxattn, selfattn, full choose "
        "parameters (2023); esd-x, esd-u, esd-all, esd-x-strict choose linear and convolution layers, never "
        "norms (2025).",
    )
    anchor: Literal["empty", "concept"] = Field(
        "empty", description="Prediction that the guidance is subtracted from."
    )
    erase_from: str | None = Field(
        None,
        description="Text the concept is erased from, with anchor concept only: the student is conditioned "
        "on it; {safe} stands for the theme's surrogate.",
    )
    negative_guidance: float = Field(1.0, description="eta above.")
    start_guidance: Annotated[float, Field(ge=1)] = Field(
        3.0, description="Guidance of the partial sampling."
    )
    trajectory: Literal["student", "frozen"] = Field(
        "student",
        description="The UNet that samples the latents: the one being trained, or the frozen one (computed "
        "in advance).",
    )
    stop_rule: StopRule = Field(
        "compvis",
        description="compvis: the DDIM sampler of 2023, which drops the largest timestep and leaves the "
        "latent about 40 timesteps less noisy than the UNet is told; binned: a timestep near the latent's own, "
        "and clean latents among the noisiest (SDD, Meta-Unlearning); exact: the latent's own timestep.",
    )
    scheduler: Literal["checkpoint", "ddim", "pndm", "dpmsolver++"] = Field(
        "ddim", description="Sampler of the latents; checkpoint is the one saved with the model."
    )
    steps: Annotated[int, Field(ge=2, le=1000)] = Field(50, description="Steps of a full trajectory.")
    iterations: Annotated[int, Field(ge=1)] = Field(1000, description="Optimiser updates.")
    batch_size: Annotated[int, Field(ge=1)] = Field(
        1, description="Samples per update, each with its own concept, noise and stop."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-5, description="Step size of Adam.")
    concept_mode: Literal["joint", "sample"] = Field(
        "joint", description="One prompt of all keywords joined by commas, or one keyword drawn per sample."
    )
    size_factor: Annotated[int, Field(ge=1)] = Field(
        1,
        description="Side of the training latents in units of the UNet's own; 2 is the 1024 pixels "
        "hard-coded in 2025.",
    )
    compute: Literal["float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of UNet evaluations; weights and optimiser are always float32."
    )
    forward_batch: Annotated[int, Field(ge=1)] = Field(
        32, description="Samples per evaluation without gradients; changes speed only."
    )
    strength: float = Field(1.0, description="Share of the change that is applied; 0 is the base model.")

    @model_validator(mode="after")
    def _combinations(self) -> Settings:
        check(self.stop_rule, self.scheduler)
        if self.erase_from is not None and self.anchor != "concept":
            raise ValueError("erase_from needs anchor 'concept'")
        return self


def parameter_names(unet: Any, parameters: Parameters) -> list[str]:
    """Names of the trained parameters, in the module's order."""
    import torch

    names = [name for name, _ in unet.named_parameters()]
    frozen = ("time_embedding.", "conv_norm_out.", "conv_out.")
    layers = {
        f"{path}.{leaf}"
        for path, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        for leaf, _ in module.named_parameters(recurse=False)
    }
    strict = ("attn2.to_k.", "attn2.to_v.")
    chosen = {
        "xattn": lambda name: "attn2." in name,
        "noxattn": lambda name: not name.startswith(frozen) and "attn2." not in name,
        "selfattn": lambda name: "attn1." in name,
        "full": lambda name: True,
        "esd-x": lambda name: name in layers and "attn2." in name,
        "esd-u": lambda name: name in layers and "attn2." not in name,
        "esd-all": lambda name: name in layers,
        "esd-x-strict": lambda name: name in layers and any(mark in name for mark in strict),
    }[parameters]
    return [name for name in names if chosen(name)]


def concept_pairs(target: Target, settings: Settings) -> list[tuple[str, str]]:
    """(concept, text that conditions the student) for every concept that can be drawn."""
    if settings.concept_mode == "joint":
        safe = ", ".join(dict.fromkeys(theme.safe for theme in target.themes))
        found = {target.text: safe}
    else:
        found = {}
        for theme in target.themes:
            for word in theme.keywords:
                found.setdefault(word, theme.safe)
    source = settings.erase_from
    return [
        (word, word if source is None else source.replace("{safe}", safe)) for word, safe in found.items()
    ]


@dataclass(frozen=True)
class Draws:
    """Everything random, drawn in advance; each tensor is [iterations, batch_size].

    concepts: index of the concept; stops: steps of partial sampling; timesteps: what the UNet is told; seeds:
    of the initial noise.
    """

    concepts: Tensor
    stops: Tensor
    timesteps: Tensor
    seeds: Tensor


def draw(
    settings: Settings, concepts: int, timesteps: Tensor, train_timesteps: int, generator: torch.Generator
) -> Draws:
    """Draw for all updates. timesteps: of the schedule; train_timesteps: how many the model was trained on
    (1000).
    """
    import torch

    from palimpsest.methods._stops import stops_and_timesteps

    shape = (settings.iterations, settings.batch_size)
    which = torch.randint(concepts, shape, generator=generator)
    place = torch.randint(settings.steps, shape, generator=generator)
    seeds = torch.randint(2**62, shape, generator=generator)
    stops, told = stops_and_timesteps(place, settings, timesteps, train_timesteps, generator)
    return Draws(which, stops, told, seeds)


@dataclass(frozen=True)
class Job:
    """What stays the same during one fit. frozen: the base in float32, with the scheduler of the training
    latents.
    concepts and sources: embeddings [K, L, D]; empty: [1, L, D]."""

    settings: Settings
    sampler: Sampler
    frozen: Pipeline
    concepts: Tensor
    sources: Tensor
    empty: Tensor

    def latents(self, unet: Any, which: Tensor, stops: Tensor, seeds: Tensor) -> Tensor:
        """Partly denoised latents [N, C, h, w] of the given draws (each [N])."""
        from palimpsest.methods._stops import skipped
        from palimpsest.methods._training import arithmetic, normal
        from palimpsest.sampling.trajectory import partial_denoise

        config = self.frozen.unet.config
        side = config.sample_size * self.settings.size_factor
        noise = normal(seeds.tolist(), (config.in_channels, side, side))
        sampled = replace(self.frozen, unet=unet)
        first = skipped(self.settings)
        with arithmetic(self.settings.compute, self.empty.device):
            return partial_denoise(
                sampled, self.sources[which], self.empty, noise, stops.tolist(), self.sampler, first
            )

    def targets(self, latents: Tensor, timesteps: Tensor, which: Tensor) -> Tensor:
        """What the student is trained on, [N, C, h, w], from the frozen UNet."""
        import torch

        from palimpsest.methods._training import predict

        texts = [self.empty.expand(len(which), -1, -1), self.concepts[which]]
        if self.settings.erase_from is not None:
            texts.append(self.sources[which])
        with torch.no_grad():
            many = len(texts)
            shown, told = torch.cat([latents] * many), torch.cat([timesteps] * many)
            noise = predict(self.frozen.unet, shown, told, torch.cat(texts), self.settings.compute)
        empty, concept, *source = noise.chunk(many)
        base = empty if self.settings.anchor == "empty" else source[0] if source else concept
        return base - self.settings.negative_guidance * (concept - empty)


def in_advance(job: Job, draws: Draws) -> tuple[Tensor, Tensor]:
    """Latents and targets of all updates, [iterations * batch_size, C, h, w]: possible since no student is
    involved.
    """
    import torch

    which, told = draws.concepts.flatten(), draws.timesteps.flatten().to(job.empty.device)
    latents = job.latents(job.frozen.unet, which, draws.stops.flatten(), draws.seeds.flatten())
    parts = torch.arange(len(which)).split(job.settings.forward_batch)
    return latents, torch.cat([job.targets(latents[part], told[part], which[part]) for part in parts])


def loss_of(
    job: Job, student: Any, draws: Draws, update: int, ready: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The loss of one update; its graph reaches the trained parameters. ready: what `in_advance` gave."""
    import torch

    from palimpsest.methods._training import predict

    settings = job.settings
    which, told = draws.concepts[update], draws.timesteps[update].to(job.empty.device)
    if ready is not None:
        rows = slice(update * settings.batch_size, (update + 1) * settings.batch_size)
        latents, targets = ready[0][rows], ready[1][rows]
    else:
        latents = job.latents(student, which, draws.stops[update], draws.seeds[update])
        targets = job.targets(latents, told, which)
    predicted = predict(student, latents, told, job.sources[which], settings.compute)
    return torch.nn.functional.mse_loss(predicted, targets)


def train(job: Job, student: Any, draws: Draws) -> list[float]:
    """Run all updates on `student`; returns the loss of each."""
    import torch

    from palimpsest.methods._training import checked, trained

    settings = job.settings
    optimizer = torch.optim.Adam(list(trained(student).values()), lr=settings.learning_rate)
    ready = in_advance(job, draws) if settings.trajectory == "frozen" else None
    losses = []
    for update in range(settings.iterations):
        loss = loss_of(job, student, draws, update, ready)
        losses.append(checked(loss, update))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def prepare(
    pipeline: Pipeline, target: Target, settings: Settings, seed: int, what: str = "esd"
) -> tuple[Job, Draws, list[tuple[str, str]]]:
    """What a fit needs before its first update, and the concept pairs. what: the method named in messages.

    Raises ValueError for a keyword without tokens.
    """
    from palimpsest.methods import _training
    from palimpsest.methods._keywords import check_keywords
    from palimpsest.methods._stops import schedule
    from palimpsest.sampling.embeddings import encode_with_unconditional, warn_when_cut
    from palimpsest.sampling.schedulers import build

    check_keywords(pipeline, [(word, None) for word in target.keywords], what)
    concepts = concept_pairs(target, settings)
    for concept, _ in concepts:
        warn_when_cut(pipeline, concept, what)
    texts = [*(pair[0] for pair in concepts), *(pair[1] for pair in concepts)]
    embeds = encode_with_unconditional(pipeline, texts).float()
    scheduler, sampler = schedule(pipeline, settings)
    frozen = replace(pipeline, unet=_training.in_float32(pipeline.unet), scheduler=scheduler)
    job = Job(
        settings, sampler, frozen, embeds[1 : len(concepts) + 1], embeds[len(concepts) + 1 :], embeds[:1]
    )
    timesteps = build(sampler.name, scheduler.config, sampler.steps).timesteps
    count = int(scheduler.config.num_train_timesteps)
    draws = draw(settings, len(concepts), timesteps, count, _training.generator(seed, "esd"))
    return job, draws, concepts


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Fine-tune a float32 copy of the chosen parameters. meta["unet_evaluations"] counts forward passes of
    single samples.
    """
    from palimpsest.methods import _training

    job, draws, concepts = prepare(pipeline, target, settings, seed)
    frozen = job.frozen.unet
    student = _training.trainable_copy(frozen, parameter_names(frozen, settings.parameters))
    losses = train(job, student, draws)
    branches = 2 if settings.start_guidance > 1 else 1
    passes = 4 if settings.erase_from is not None else 3
    meta = {
        "settings": settings.model_dump(),
        "seed": seed,
        "concepts": concepts,
        "trained_parameters": sum(p.numel() for p in _training.trained(student).values()),
        "losses": losses,
        "unet_evaluations": branches * int(draws.stops.sum()) + passes * draws.stops.numel(),
    }
    return Artifact(_training.snapshot(student), meta)


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the trained parameters at `settings.strength`."""
    from palimpsest.methods._weights import with_edited

    return with_edited(pipeline, "unet", artifact.tensors, settings.strength)
