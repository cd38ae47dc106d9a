"""SPM, concept semi-permeable membrane: rank-1 side branches trained like ESD, held still on random text
embeddings, and turned up at sampling by what the prompt is about.

With the frozen prediction e*, the prediction with branches e, the concept c, the neutral text n and anchors a,
all at a latent x_t that the model with branches drew for c:

    L = MSE(e(c), e*(n) - eta (e*(c) - e*(n))) + la_strength mean over a of MSE(e(a), e*(a))

An anchor is a random direction in the space of text embeddings, about as long as the concept's embedding (Lyu et
al., CVPR 2024). `_adapters` holds the branches and `_gates` what turns them up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from palimpsest.methods.contract import Artifact, Info, Target, TrainingData

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from palimpsest.methods._adapters import Route, Student
    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="spm",
    title="SPM",
    stage="fine-tuning",
    trains="UNet: rank-1 branches beside all layers of the transformer blocks",
    fits=True,
    paper="https://arxiv.org/abs/2312.16145",
    bibtex="@inproceedings{lyu2024one, title={One-dimensional Adapter to Rule Them All: Concepts, Diffusion "
    "Models and Erasing Applications}, author={Lyu, Mengyao and Yang, Yuhong and Hong, Haiwen and Chen, Hui "
    "and Jin, Xuan and He, Yuan and Xue, Hui and Han, Jungong and Ding, Guiguang}, "
    "booktitle={Conference on Computer Vision and Pattern Recognition}, year={2024}}",
    code="https://github.com/Con6924/SPM",
    licence="Apache-2.0",
    fidelity="reimplemented from code",
    architectures=("sd1", "sd2", "sdxl"),
)


class Settings(BaseModel):
    """Knobs of SPM; the defaults are the official values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    adapter_mode: Literal["per_keyword", "joint_list", "joint_prompt"] = Field(
        "joint_list",
        description="per_keyword: one set of branches for each keyword, trained alone; joint_list: one for all, a "
        "keyword drawn per sample; joint_prompt: one for all keywords joined by commas into one prompt.",
    )
    gate: Literal["official_sq", "paper_linear", "none"] = Field(
        "official_sq",
        description="How branches are turned up at sampling by the likeness g of prompt and keywords. official_sq: "
        "every tensor times g, tensors of several concepts summed, so one concept's branch gets g squared and "
        "several get products with each other; paper_linear: every concept's branch times its g; none: always on.",
    )
    matching: Literal["clipcos_tokenuni", "clipcos", "tokenuni"] = Field(
        "clipcos_tokenuni",
        description="Likeness: cosine of the whole text embeddings (clipcos), share of the keyword's tokens in the "
        "prompt (tokenuni), or the larger of the two.",
    )
    anchors: Literal["official", "intended"] = Field(
        "official",
        description="intended: all random anchors count; official: a slip in the code leaves the second half of "
        "empty, a1, empty, a2, ..., so the empty prompt is an anchor and half of the random ones are not.",
    )
    anchor_count: Annotated[int, Field(ge=1)] = Field(4, description="Random anchors per sample.")
    la_strength: Annotated[float, Field(ge=0)] = Field(
        1000.0, description="Weight of the anchors; 0 is no anchors."
    )
    negative_guidance: float = Field(1.0, description="eta above.")
    neutral: str = Field("", description="The neutral text n; {safe} stands for the theme's surrogate.")
    rank: Annotated[int, Field(ge=1)] = Field(1, description="Rows of A and columns of B.")
    alpha: Annotated[float, Field(gt=0)] = Field(1.0, description="Branches are scaled by alpha / rank.")
    start_guidance: Annotated[float, Field(ge=1)] = Field(
        3.0, description="Guidance of the partial sampling."
    )
    scheduler: Literal["official_ddim", "ddim", "pndm", "dpmsolver++"] = Field(
        "official_ddim",
        description="Sampler of the latents; official_ddim is DDIM that counts timesteps from 0.",
    )
    told: Literal["rescaled", "own"] = Field(
        "rescaled",
        description="Timestep the UNet is told after i of N steps. rescaled: 999 - floor(1000 i / N), about 40 "
        "noisier than the latent is (official); own: the one the latent stands at.",
    )
    steps: Annotated[int, Field(ge=2, le=1000)] = Field(30, description="Steps N of a full trajectory.")
    dynamic_resolution: bool = Field(
        True,
        description="Height and width of each update drawn from half of the UNet's own side up to, but not "
        "including, that side (official); false is the UNet's own size.",
    )
    iterations: Annotated[int, Field(ge=1)] = Field(
        3000, description="Optimiser updates; in per_keyword mode for every keyword."
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(
        1, description="Samples per update, each with its own concept, noise, stop and anchors."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-4, description="Largest step size of AdamW.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-2, description="Decoupled weight decay of AdamW.")
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        1 / 6, description="Share of the updates in which the step size grows from 0 (500 of 3000)."
    )
    cycles: Annotated[int, Field(ge=1)] = Field(
        3, description="Times the step size falls to 0 along half a cosine, starting anew."
    )
    compute: Literal["float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of UNet evaluations; weights and optimiser are always float32."
    )
    forward_batch: Annotated[int, Field(ge=1)] = Field(
        32, description="Samples per evaluation in partial sampling; changes speed only."
    )
    strength: float = Field(1.0, description="Factor on the branches; 0 is the base model.")


def concepts_of(target: Target, settings: Settings) -> list[list[tuple[str, str]]]:
    """(concept, neutral text) of every concept that can be drawn, one list for each set of branches.

    Raises ValueError when a concept is its own neutral text.
    """
    pairs: dict[str, str] = {}
    for theme in target.themes:
        for word in theme.keywords:
            pairs.setdefault(word, settings.neutral.replace("{safe}", theme.safe))
    if settings.adapter_mode == "joint_prompt":
        safe = ", ".join(dict.fromkeys(theme.safe for theme in target.themes))
        pairs = {target.text: settings.neutral.replace("{safe}", safe)}
    same = [word for word, neutral in pairs.items() if word == neutral]
    if same:
        raise ValueError(
            f"spm: the keyword {same[0]!r} is its own neutral text; change the keyword, the theme's `safe`, or "
            "the setting `neutral`"
        )
    if settings.adapter_mode == "per_keyword":
        return [[pair] for pair in pairs.items()]
    return [list(pairs.items())]


def rate_factor(update: int, settings: Settings) -> float:
    """Share of the largest step size at `update` (0-based): a linear warm-up, then half cosines down to 0."""
    warmup = round(settings.warmup_fraction * settings.iterations)
    if update < warmup:
        return update / warmup
    progress = (update - warmup) / (settings.iterations - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * (settings.cycles * progress % 1.0)))


def counted_anchors(settings: Settings) -> tuple[int, list[int]]:
    """How often the empty prompt counts as an anchor, and which of the random anchors count."""
    everyone = list(range(settings.anchor_count))
    if settings.la_strength == 0.0:
        return 0, []
    if settings.anchors == "intended":
        return 0, everyone
    interleaved = [place for index in everyone for place in (None, index)][settings.anchor_count :]
    return interleaved.count(None), [place for place in interleaved if place is not None]


def anchor(concept: Tensor, seed: int, pooled: int = 0) -> Tensor:
    """A random text embedding [L, D] of 0.8 to 1.2 times the length of `concept`, all positions taken as one
    vector; the more it points the way of the concept, the likelier it is drawn again.

    pooled: width of the pooled embedding in the last row, 0 without one; it is drawn after the states and apart from
    them, as in the official code for Stable Diffusion XL.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    if not pooled:
        return _like(concept.cpu(), generator)
    states, row = _like(concept[:-1].cpu(), generator), _like(concept[-1, :pooled].cpu(), generator)
    return torch.cat([states, torch.nn.functional.pad(row, (0, concept.shape[1] - pooled))[None]])


def _like(concept: Tensor, generator: torch.Generator) -> Tensor:
    """A random tensor of the shape of `concept` and nearly of its length, see `anchor`."""
    import torch

    length = concept.norm()
    while True:
        direction = torch.randn(concept.shape, generator=generator)
        direction = direction / direction.norm()
        likeness = (direction * concept).sum() / length
        if torch.rand((), generator=generator) < 1 - likeness:
            return direction * length * (0.8 + 0.4 * torch.rand((), generator=generator))


@dataclass(frozen=True)
class Draws:
    """Everything random about one set of branches, drawn in advance.

    concepts: index of the concept; stops: steps of partial sampling; seeds: of the initial noise; all
    [iterations, batch_size]. anchors: their seeds, [iterations, batch_size, anchor_count]. sizes: height and width
    of the latents, [iterations, 2].
    """

    concepts: Tensor
    stops: Tensor
    seeds: Tensor
    anchors: Tensor
    sizes: Tensor


def sides(unet: Any, settings: Settings) -> list[int]:
    """Sides that latents may have: multiples of what the UNet needs (64 pixels in Stable Diffusion v1)."""
    whole, multiple = int(unet.config.sample_size), 2 ** (len(unet.config.block_out_channels) - 1)
    if not settings.dynamic_resolution:
        return [whole]
    found = [side for side in range(multiple, whole, multiple) if side >= whole // 2]
    if not found:
        raise ValueError(
            f"spm: dynamic_resolution finds no side below {whole} that is a multiple of {multiple}; set it to false"
        )
    return found


def draw(settings: Settings, concepts: int, allowed: Sequence[int], generator: torch.Generator) -> Draws:
    """Draw for all updates of one set of branches. allowed: see `sides`."""
    import torch

    shape = (settings.iterations, settings.batch_size)
    return Draws(
        torch.randint(concepts, shape, generator=generator),
        torch.randint(1, settings.steps, shape, generator=generator),
        torch.randint(2**62, shape, generator=generator),
        torch.randint(2**62, (*shape, settings.anchor_count), generator=generator),
        torch.tensor(allowed)[torch.randint(len(allowed), (settings.iterations, 2), generator=generator)],
    )


@dataclass(frozen=True)
class _Job:
    """One set of branches. concepts, neutrals: embeddings [K, L, D]; empty: [1, L, D]; neutrals is None when the
    neutral text is the empty prompt.
    """

    settings: Settings
    pipeline: Pipeline
    route: Route
    student: Student
    concepts: Tensor
    neutrals: Tensor | None
    empty: Tensor

    def latents(self, draws: Draws, update: int) -> Tensor:
        """Partly denoised latents [B, C, h, w] of the student."""
        from palimpsest.methods._training import normal

        shape = (self.student.frozen.config.in_channels, *draws.sizes[update].tolist())
        noise = normal(draws.seeds[update].tolist(), shape)
        texts = (self.concepts[draws.concepts[update].to(self.empty.device)], self.empty)
        stops = draws.stops[update].tolist()
        unet = self.student.merged()
        return self.route.latents(self.pipeline, unet, texts, noise, stops, self.settings.compute)

    def loss(self, latents: Tensor, told: Tensor, which: Tensor, seeds: Tensor) -> Tensor:
        """The loss of one batch; the graph reaches the branches. which: [B]; seeds of anchors: [B, n]."""
        import torch
        from torch.nn.functional import mse_loss

        from palimpsest.methods._adapters import evaluate

        settings = self.settings
        empties, counted = counted_anchors(settings)
        concepts, pooled = self.concepts[which], getattr(self.student.frozen, "pooled_width", 0)
        empty = self.empty.expand_as(concepts)
        held = {"empty": empty} if empties else {}
        for place in counted:
            made = [anchor(c, int(s), pooled) for c, s in zip(concepts, seeds[:, place], strict=True)]
            held[f"anchor {place}"] = torch.stack(made).to(concepts)
        neutral = {"neutral": empty if self.neutrals is None else self.neutrals[which]}
        # The empty prompt as neutral text and as anchor is one evaluation.
        same = self.neutrals is None and empties > 0
        texts = {"concept": concepts, **({} if same else neutral), **held}
        with torch.no_grad():
            frozen = evaluate(self.student.frozen, latents, told, texts, settings.compute)
        ours = evaluate(self.student.branched, latents, told, {"concept": concepts, **held}, settings.compute)
        base = frozen["empty" if same else "neutral"]
        loss = mse_loss(ours["concept"], base - settings.negative_guidance * (frozen["concept"] - base))
        if held:
            errors = [
                (empties if name == "empty" else 1) * mse_loss(ours[name], frozen[name]) for name in held
            ]
            loss = loss + settings.la_strength * torch.stack(errors).sum() / (empties + len(counted))
        return loss


def train(job: _Job, draws: Draws) -> list[float]:
    """Run all updates of one set of branches; returns the loss of each."""
    import torch

    from palimpsest.methods._training import checked

    settings, device = job.settings, job.empty.device
    optimizer = torch.optim.AdamW(
        list(job.student.parameters.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    losses = []
    for update in range(settings.iterations):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate_factor(update, settings)
        latents = job.latents(draws, update)
        told = job.route.told(draws.stops[update], settings.told).to(device)
        loss = job.loss(latents, told, draws.concepts[update].to(device), draws.anchors[update])
        losses.append(checked(loss, update))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def evaluations(settings: Settings, draws: Draws) -> int:
    """Forward passes of single samples in `train`."""
    empties, counted = counted_anchors(settings)
    held = len(counted) + (empties > 0)
    neutral = 0 if settings.neutral == "" and empties else 1
    branches = 2 if settings.start_guidance > 1 else 1
    return branches * int(draws.stops.sum()) + (2 + neutral + 2 * held) * draws.stops.numel()


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Train one set of branches, or one per keyword. Tensors: "<layer>.down" [S, r, in(, k, k)] and "<layer>.up"
    [S, out, r] for S sets. meta["unet_evaluations"] counts forward passes of single samples.

    Raises ValueError for a keyword without tokens, one that is its own neutral text, and a UNet without
    transformer blocks.
    """
    from palimpsest.methods import _adapters, _gates, _training
    from palimpsest.sampling.embeddings import encode_with_unconditional, warn_when_cut

    sets = concepts_of(target, settings)
    _gates.require_tokens(pipeline, target.keywords, "spm")
    route = _adapters.route(*schedule(pipeline, settings))
    adapters, losses, counted = [], [], 0
    for index, pairs in enumerate(sets):
        for concept, _ in pairs:
            warn_when_cut(pipeline, concept, "spm")
        texts = [*(c for c, _ in pairs), *(n for _, n in pairs)]
        embeds = encode_with_unconditional(pipeline, texts).float()
        neutrals = None if settings.neutral == "" else embeds[len(pairs) + 1 :]
        weights = _training.generator(seed, f"spm branches {index}")
        student = _adapters.Student(pipeline.unet, settings.rank, settings.alpha, weights)
        job = _Job(settings, pipeline, route, student, embeds[1 : len(pairs) + 1], neutrals, embeds[:1])
        generator = _training.generator(seed, f"spm {index}")
        draws = draw(settings, len(pairs), sides(pipeline.unet, settings), generator)
        losses += train(job, draws)
        counted += evaluations(settings, draws)
        adapters.append(student.snapshot())
    tensors = _adapters.stacked(adapters)
    meta = {
        "settings": settings.model_dump(),
        "seed": seed,
        "concepts": [[list(pair) for pair in pairs] for pairs in sets],
        "gate_words": [[w for c, _ in pairs for w in _gates.split_words(c)] for pairs in sets],
        "layers": len(tensors) // 2,
        "trained_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "losses": losses,
        "unet_evaluations": counted,
    }
    return Artifact(tensors, meta)


def schedule(pipeline: Pipeline, settings: Settings) -> tuple[Any, Any]:
    """The scheduler whose settings are used, and how latents are sampled with it."""
    from palimpsest.specs import Sampler

    template, name = pipeline.scheduler, settings.scheduler
    if name == "official_ddim":
        from diffusers.schedulers import DDIMScheduler

        quirk = {"steps_offset": 0, "set_alpha_to_one": True, "clip_sample": False}
        template = DDIMScheduler.from_config({**template.config, **quirk, "timestep_spacing": "leading"})
        name = "ddim"
    sampler = Sampler(
        name=name, steps=settings.steps, guidance=settings.start_guidance, batch=settings.forward_batch
    )
    return template, sampler


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the branches, gated by the prompt through a hook or, with gate "none", in its weights."""
    from palimpsest.methods._gates import with_gate

    return with_gate(
        pipeline, artifact.tensors, settings.alpha, artifact.meta["gate_words"], settings.gate,
        settings.matching, settings.strength,
    )  # fmt: skip
