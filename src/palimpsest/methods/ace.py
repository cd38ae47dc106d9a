"""ACE, anti-editing concept erasure: side branches that move the unconditional prediction towards the concept, so
that guidance itself, which subtracts it, leads away from the concept.

With the frozen prediction e*, the prediction with branches e, the concept c, the empty prompt 0 and benign anchors a,
all at a latent x_t that the model with branches drew for c:

    L_uncond = MSE(e(0), e*(0) + eta (e*(c) - e*(0)) - s g),    g = sum over a of (e*(a) - e*(0))
    L_cond   = MSE(e(c), e*(0) - eta (e*(c) - e*(0)))
    L_prior  = mean over a of MSE(e(a), e*(a))
    L = (1 - prior_weight) (null_weight L_uncond + (1 - null_weight) L_cond) + prior_weight L_prior

The correction g keeps guidance from leading away from the anchors too (Wang et al., CVPR 2025). `_adapters` holds
the branches, which are those of SPM with more rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from palimpsest.methods.contract import Artifact, Info, Target, TrainingData, keyword_prompts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from palimpsest.methods._adapters import Route, Student
    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="ace",
    title="ACE",
    stage="fine-tuning",
    trains="UNet: rank-4 branches beside all layers of the transformer blocks",
    fits=True,
    paper="https://arxiv.org/abs/2501.01633",
    bibtex="@inproceedings{wang2025ace, title={ACE: Anti-Editing Concept Erasure in Text-to-Image Models}, "
    "author={Wang, Zihao and Wei, Yuxiang and Li, Fan and Pei, Renjing and Xu, Hang and Zuo, Wangmeng}, "
    "booktitle={Conference on Computer Vision and Pattern Recognition}, year={2025}}",
    code="https://github.com/120L020904/ACE",
    licence="none stated",
    fidelity="reimplemented from code",
    architectures=("sd1", "sd2", "sdxl"),
)


class Settings(BaseModel):
    """Knobs of ACE; the defaults are those of the official command line in its instructions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    xt: Literal["official_clean", "intended"] = Field(
        "official_clean",
        description="The latent of an update at timestep t. intended: denoised down to t; official_clean: a "
        "comparison in the code never holds, so the latent is always denoised to the end, whatever t is.",
    )
    told: Literal["rescaled", "own"] = Field(
        "rescaled",
        description="Timestep t that the UNet is told for stop i of N. rescaled: entry floor(1000 i / N) of a run "
        "of 1000 steps (official); own: entry i of the sampler's own run.",
    )
    negative_guidance: float = Field(3.0, description="eta above.")
    null_weight: Annotated[float, Field(ge=0, le=1)] = Field(
        0.99, description="Weight of the unconditional against the conditional loss."
    )
    prior_weight: Annotated[float, Field(ge=0, le=1)] = Field(
        0.8, description="Weight of holding the anchors against erasing."
    )
    correction: Literal["anchors", "surrogate"] = Field(
        "anchors",
        description="What g is made of: the anchors of the update, summed with weight 1 each; or `surrogate`.",
    )
    surrogate: str = Field(
        "",
        description="Text for correction surrogate, g = e*(surrogate) - e*(0), zero when it is empty; {safe} stands "
        "for the themes' surrogates.",
    )
    surrogate_guidance: float = Field(3.0, description="s above.")
    anchors: tuple[str, ...] | None = Field(
        None,
        description="Benign texts to hold; null is the experiment's retained prompts, or the themes' surrogates when "
        "there are none. A text that is erased is left out.",
    )
    anchor_batch: Annotated[int, Field(ge=1)] = Field(2, description="Anchors per sample.")
    rank: Annotated[int, Field(ge=1)] = Field(4, description="Rows of A and columns of B.")
    alpha: Annotated[float, Field(gt=0)] = Field(1.0, description="Branches are scaled by alpha / rank.")
    start_guidance: Annotated[float, Field(ge=1)] = Field(
        3.0, description="Guidance of the partial sampling."
    )
    scheduler: Literal["checkpoint", "ddim", "pndm", "dpmsolver++"] = Field(
        "checkpoint", description="Sampler of the latents; checkpoint is the one saved with the model."
    )
    steps: Annotated[int, Field(ge=2, le=1000)] = Field(30, description="Steps N of a full trajectory.")
    iterations: Annotated[int, Field(ge=1)] = Field(1500, description="Optimiser updates.")
    batch_size: Annotated[int, Field(ge=1)] = Field(
        1, description="Samples per update, each with its own concept, noise, timestep and anchors."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="Step size of Adam.")
    concept_mode: Literal["joint", "sample"] = Field(
        "joint", description="One prompt of all keywords joined by commas, or one keyword drawn per sample."
    )
    gate: Literal["none", "official_sq", "paper_linear"] = Field(
        "none", description="Whether branches are turned up by the prompt, as in SPM; none is always on."
    )
    matching: Literal["clipcos_tokenuni", "clipcos", "tokenuni"] = Field(
        "clipcos_tokenuni", description="Likeness of prompt and keyword for gates, as in SPM."
    )
    compute: Literal["float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of UNet evaluations; weights and optimiser are always float32."
    )
    forward_batch: Annotated[int, Field(ge=1)] = Field(
        32, description="Samples per evaluation in partial sampling; changes speed only."
    )
    strength: float = Field(1.0, description="Factor on the branches; 0 is the base model.")


def anchor_texts(target: Target, settings: Settings) -> list[str]:
    """The benign texts of the prior loss and the correction; none when neither needs them.

    Raises ValueError when all of them are to be erased.
    """
    if settings.prior_weight == 0.0 and settings.correction != "anchors":
        return []
    given = settings.anchors or target.retain or tuple(theme.safe for theme in target.themes)
    erased = {*target.keywords, target.text}
    kept = [text for text in dict.fromkeys(given) if text not in erased]
    if not kept:
        raise ValueError(
            f"ace: no anchor is left of {list(given)}, since all of them are keywords to erase; set `retain` of the "
            "experiment or `anchors` of the method to benign texts"
        )
    return kept


@dataclass(frozen=True)
class Draws:
    """Everything random, drawn in advance.

    concepts: index of the concept; places: i of N steps, which decides the timestep; seeds: of the initial noise;
    all [iterations, batch_size]. anchors: indices, [iterations, batch_size, number of anchors].
    """

    concepts: Tensor
    places: Tensor
    seeds: Tensor
    anchors: Tensor


def draw(settings: Settings, concepts: int, anchors: int, generator: torch.Generator) -> Draws:
    """Draw for all updates. Anchors are dealt from a shuffled deck, shuffled anew when it ends."""
    import torch

    shape = (settings.iterations, settings.batch_size)
    each = min(settings.anchor_batch, anchors)
    which = torch.randint(concepts, shape, generator=generator)
    places = torch.randint(settings.steps, shape, generator=generator)
    seeds = torch.randint(2**62, shape, generator=generator)
    total = settings.iterations * settings.batch_size * each
    decks = [torch.randperm(anchors, generator=generator) for _ in range(-(-total // max(anchors, 1)))]
    dealt = torch.cat([torch.zeros(0, dtype=torch.long), *decks])[:total]
    return Draws(which, places, seeds, dealt.view(*shape, each))


@dataclass(frozen=True)
class _Job:
    """What stays the same during one fit. concepts: [K, L, D]; anchors: [M, L, D]; surrogate: [1, L, D] or None;
    empty: [1, L, D].
    """

    settings: Settings
    pipeline: Pipeline
    route: Route
    student: Student
    concepts: Tensor
    anchors: Tensor
    surrogate: Tensor | None
    empty: Tensor

    def latents(self, which: Tensor, places: Tensor, seeds: Tensor) -> Tensor:
        """Latents [B, C, h, w] of the student."""
        import torch

        from palimpsest.methods._training import normal

        config = self.student.frozen.config
        noise = normal(seeds.tolist(), (config.in_channels, config.sample_size, config.sample_size))
        clean = self.settings.xt == "official_clean"
        stops = torch.full_like(places, self.settings.steps) if clean else places
        texts = (self.concepts[which.to(self.empty.device)], self.empty)
        unet = self.student.merged()
        return self.route.latents(self.pipeline, unet, texts, noise, stops.tolist(), self.settings.compute)

    def loss(self, latents: Tensor, told: Tensor, which: Tensor, anchors: Tensor) -> Tensor:
        """The loss of one batch; the graph reaches the branches. which: [B]; anchors: [B, n]."""
        import torch
        from torch.nn.functional import mse_loss

        from palimpsest.methods._adapters import evaluate

        settings = self.settings
        texts = {"empty": self.empty.expand(len(which), -1, -1), "concept": self.concepts[which]}
        held = {f"anchor {k}": self.anchors[index] for k, index in enumerate(anchors.T)}
        other = {} if self.surrogate is None else {"surrogate": self.surrogate.expand(len(which), -1, -1)}
        with torch.no_grad():
            frozen = evaluate(
                self.student.frozen, latents, told, {**texts, **held, **other}, settings.compute
            )
        prior = settings.prior_weight
        ours = evaluate(
            self.student.branched, latents, told, {**texts, **(held if prior else {})}, settings.compute
        )
        empty, concept = frozen["empty"], frozen["concept"]
        towards = held if settings.correction == "anchors" else other
        correction = sum((frozen[name] - empty for name in towards), torch.zeros_like(empty))
        away = settings.negative_guidance * (concept - empty)
        uncond = mse_loss(ours["empty"], empty + away - settings.surrogate_guidance * correction)
        cond = mse_loss(ours["concept"], empty - away)
        loss = (1 - prior) * (settings.null_weight * uncond + (1 - settings.null_weight) * cond)
        if prior:
            loss = loss + prior * torch.stack([mse_loss(ours[name], frozen[name]) for name in held]).mean()
        return loss


def train(job: _Job, draws: Draws) -> list[float]:
    """Run all updates; returns the loss of each."""
    import torch

    from palimpsest.methods._training import checked

    settings, device = job.settings, job.empty.device
    optimizer = torch.optim.Adam(list(job.student.parameters.values()), lr=settings.learning_rate)
    losses = []
    for update in range(settings.iterations):
        which, places = draws.concepts[update], draws.places[update]
        latents = job.latents(which, places, draws.seeds[update])
        told = job.route.told(places, settings.told).to(device)
        loss = job.loss(latents, told, which.to(device), draws.anchors[update].to(device))
        losses.append(checked(loss, update))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def evaluations(settings: Settings, draws: Draws, surrogate: bool) -> int:
    """Forward passes of single samples in `train`."""
    samples, each = draws.places.numel(), draws.anchors.shape[-1]
    clean = settings.xt == "official_clean"
    steps = samples * settings.steps if clean else int(draws.places.sum())
    branches = 2 if settings.start_guidance > 1 else 1
    student = 2 + (each if settings.prior_weight else 0)
    return branches * steps + samples * (2 + each + surrogate + student)


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Train the branches. Tensors: "<layer>.down" [1, r, in(, k, k)] and "<layer>.up" [1, out, r].
    meta["unet_evaluations"] counts forward passes of single samples.

    Raises ValueError for a keyword without tokens, for anchors that are all erased, for a UNet without
    transformer blocks, and for a checkpoint whose own scheduler cannot be used.
    """
    from palimpsest.methods import _adapters, _gates, _training
    from palimpsest.sampling.embeddings import encode_with_unconditional, warn_when_cut

    _gates.require_tokens(pipeline, target.keywords, "ace")
    concepts, anchors = list(keyword_prompts(target, settings.concept_mode)), anchor_texts(target, settings)
    for concept in concepts:
        warn_when_cut(pipeline, concept, "ace")
    safe = ", ".join(dict.fromkeys(theme.safe for theme in target.themes))
    surrogate = settings.surrogate.replace("{safe}", safe) if settings.correction == "surrogate" else ""
    embeds = encode_with_unconditional(pipeline, [surrogate, *concepts, *anchors]).float()
    student = _adapters.Student(
        pipeline.unet, settings.rank, settings.alpha, _training.generator(seed, "ace branches")
    )
    job = _Job(
        settings,
        pipeline,
        _adapters.route(*schedule(pipeline, settings)),
        student,
        embeds[2 : len(concepts) + 2],
        embeds[len(concepts) + 2 :],
        embeds[1:2] if surrogate else None,
        embeds[:1],
    )
    draws = draw(settings, len(concepts), len(anchors), _training.generator(seed, "ace"))
    losses = train(job, draws)
    tensors = _adapters.stacked([student.snapshot()])
    meta = {
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        "concepts": concepts,
        "anchors": anchors,
        "gate_words": [list(target.keywords)],
        "layers": len(tensors) // 2,
        "trained_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "losses": losses,
        "unet_evaluations": evaluations(settings, draws, bool(surrogate)),
    }
    return Artifact(tensors, meta)


def schedule(pipeline: Pipeline, settings: Settings) -> tuple[Any, Any]:
    """The scheduler whose settings are used, and how latents are sampled with it."""
    from palimpsest.sampling.schedulers import KINDS
    from palimpsest.specs import Sampler

    name: Any = settings.scheduler
    if name == "checkpoint":
        usable = ("ddim", "pndm", "dpmsolver++")
        kind = type(pipeline.scheduler).__name__
        known = {KINDS[usual][0]: usual for usual in usable}
        if kind not in known:
            raise ValueError(
                f"scheduler 'checkpoint' is {kind} here; ACE can use {sorted(known)}: set scheduler to one of {usable}"
            )
        name = known[kind]
    sampler = Sampler(
        name=name, steps=settings.steps, guidance=settings.start_guidance, batch=settings.forward_batch
    )
    return pipeline.scheduler, sampler


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the branches in its weights, or gated by the prompt through a hook."""
    from palimpsest.methods._gates import with_gate

    return with_gate(
        pipeline, artifact.tensors, settings.alpha, artifact.meta["gate_words"], settings.gate,
        settings.matching, settings.strength,
    )  # fmt: skip
