"""SelfD, self-discovered latent directions: one vector per theme, added at the bottleneck of the UNet, that
leads to what the safe images show.

The images were made from a neutral prompt with the theme's keywords as negative prompt; the prompt alone does
not say what was left out, so the vector v has to. With everything else frozen,

    L = mean (e(x_t, t, prompt; mid + v) - noise)^2,    mid: output of the middle block, [C, h, w]

v does not depend on the timestep, is added at every step of sampling to the rows of the prompt, and vectors
of several themes add up (Li et al., CVPR 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from palimpsest.methods.contract import Artifact, Info, Target, ThemeTarget, TrainingData
from palimpsest.sampling.pipeline import Hook, Step

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from palimpsest.methods._denoising import Batch, Noisy
    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="selfd",
    title="SelfD",
    stage="inference guidance",
    trains="one vector per theme after the middle block of the UNet",
    fits=True,
    paper="https://arxiv.org/abs/2311.17216",
    bibtex="@inproceedings{li2024self, title={Self-Discovering Interpretable Diffusion Latent Directions for "
    "Responsible Text-to-Image Generation}, author={Li, Hang and Shen, Chengzhi and Torr, Philip and Tresp, "
    "Volker and Gu, Jindong}, booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition}, "
    "year={2024}}",
    code="https://github.com/hangligit/InterpretDiffusion",
    licence="none stated",
    fidelity="reimplemented from code",
    needs=("safe_images",),
    architectures=("sd1", "sd2", "sdxl"),
)
JOINT = "joint"


class Settings(BaseModel):
    """Knobs of SelfD; the defaults are the official ones, which Table 14 of the benchmark paper repeats."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    caption: Literal["prompt", "keyword"] = Field(
        "prompt",
        description="Text in training: the prompt of the image, or that prompt with a keyword of the theme in "
        "place of its surrogate (keywords take turns), so that the vector has to undo the keyword.",
    )
    vectors: Literal["theme", "joint"] = Field(
        "theme", description="One vector per theme, added up, or one vector of all safe images together."
    )
    epochs: Annotated[int, Field(ge=1)] = Field(20, description="Passes through the safe images.")
    iterations: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Optimiser updates in place of `epochs` (the official max_train_steps)."
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(
        8, description="Images per update; the last update of an epoch has what is left."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(0.1, description="Step size of Adam, constant.")
    init_range: Annotated[float, Field(ge=0)] = Field(
        0.1,
        description="Vectors start uniform in +- this; officially 1 / sqrt(100), since a vector is a column "
        "of a linear layer with 100 inputs.",
    )
    pad: Literal["longest", "max_length"] = Field(
        "longest",
        description="Text in training: padded to the longest prompt of the batch (official), or to the text "
        "encoder's full length as in sampling.",
    )
    branches: Literal["cond", "both"] = Field(
        "cond",
        description="Rows that get the vector in sampling: of the prompt (official), or of the empty prompt "
        "too.",
    )
    compute: Literal["float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of UNet evaluations; the vector and its optimiser are float32."
    )
    forward_batch: Annotated[int, Field(ge=1)] = Field(
        32, description="Images per encoding without gradients; changes speed only."
    )
    strength: float = Field(1.0, description="Factor on the vectors in sampling; 0 is the base model.")


@dataclass(frozen=True)
class Gathered:
    """All safe images. noisy: encoded; names: of the vectors; owner: [N], the vector of each image; lengths:
    [N], tokens of each prompt with start and end; pooled: whether texts end with a pooled row.
    """

    noisy: Noisy
    names: tuple[str, ...]
    owner: Tensor
    lengths: Tensor
    pooled: bool = False


def caption(prompt: str, theme: ThemeTarget, place: int, settings: Settings) -> str:
    """The text that conditions the UNet on one image; `place` chooses the keyword."""
    if settings.caption == "prompt":
        return prompt
    keyword = theme.keywords[place % len(theme.keywords)]
    return prompt.replace(theme.safe, keyword) if theme.safe in prompt else keyword


def gather(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings) -> Gathered:
    """Encode the safe images of all themes. Raises ValueError for sets that do not fit the target."""
    import numpy as np
    import torch

    from palimpsest.methods._denoising import noisy
    from palimpsest.sampling.embeddings import token_count

    sets = {images.theme: images for images in data.role("safe_images")}
    themes = [theme.name for theme in target.themes]
    if set(sets) != set(themes):
        raise ValueError(
            f"safe images of {sorted(sets)} were given, the target has {sorted(themes)}; give one set per theme"
        )
    if empty := [name for name in themes if not len(sets[name].images)]:
        raise ValueError(f"no safe images of {empty}; a direction is learned from at least one image")
    found = [sets[name] for name in themes]
    prompts = [
        caption(prompt, theme, place, settings)
        for theme in target.themes
        for place, prompt in enumerate(sets[theme.name].prompts)
    ]
    counts = torch.tensor([len(images.images) for images in found])
    owner = torch.arange(len(found)).repeat_interleave(counts)
    joint = settings.vectors == "joint"
    room = pipeline.tokenizer.model_max_length
    tokens = {prompt: min(token_count(pipeline, prompt) + 2, room) for prompt in set(prompts)}
    return Gathered(
        noisy(pipeline, np.concatenate([images.images for images in found]), prompts, settings.forward_batch),
        (JOINT,) if joint else tuple(themes),
        torch.zeros_like(owner) if joint else owner,
        torch.tensor([tokens[prompt] for prompt in prompts]),
        pipeline.text_encoder_2 is not None,
    )


def draw(settings: Settings, images: int, timesteps: int, generator: torch.Generator) -> list[Batch]:
    """The batches of all updates: every epoch in an order of its own, its last batch shorter."""
    import torch

    from palimpsest.methods._denoising import Batch

    batches: list[Batch] = []
    epochs = settings.epochs
    if settings.iterations is not None:
        epochs = -(-settings.iterations // -(-images // settings.batch_size))
    for _ in range(epochs):
        order = torch.randperm(images, generator=generator)
        told = torch.randint(timesteps, (images,), generator=generator)
        seeds = torch.randint(2**62, (images,), generator=generator)
        parts = [values.split(settings.batch_size) for values in (order, told, seeds)]
        batches += [Batch(*part) for part in zip(*parts, strict=True)]
    return batches[: settings.iterations]


def initial(pipeline: Pipeline, names: Sequence[str], bound: float, generator: torch.Generator) -> Tensor:
    """The vectors before training, [K, C, h, w] of the middle block's output, uniform in +- bound."""
    import torch

    config = pipeline.unet.config
    side = config.sample_size // 2 ** (len(config.block_out_channels) - 1)
    shape = (len(names), config.block_out_channels[-1], side, side)
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound


@contextmanager
def shifted(unet: Any, shift: Any) -> Iterator[None]:
    """A context in which `shift(output)` takes the place of the middle block's output [B, C, h, w]."""
    handle = unet.mid_block.register_forward_hook(lambda module, inputs, output: shift(output))
    try:
        yield
    finally:
        handle.remove()


def _private(unet: Any) -> Any:
    """A float32 UNet that shares its frozen tensors with the given one, so that a hook stays out of the base."""
    import torch

    from palimpsest.methods._training import in_float32
    from palimpsest.sampling.twins import twin

    unet = in_float32(unet)
    return twin(unet, {id(p): torch.nn.Parameter(p.detach(), requires_grad=False) for p in unet.parameters()})


def train(
    unet: Any, vectors: Tensor, data: Gathered, batches: Sequence[Batch], settings: Settings
) -> list[float]:
    """Train `vectors` in place; returns the loss of each update.

    Gradients pass the up blocks only: what comes before the vectors depends on nothing that is trained.
    """
    import torch

    from palimpsest.methods._training import checked, predict
    from palimpsest.sampling.embeddings import shortened

    optimizer = torch.optim.Adam([vectors], lr=settings.learning_rate)
    owner, losses = data.owner.to(vectors.device), []
    for update, batch in enumerate(batches):
        latents, noise = data.noisy.latents(batch)
        texts = data.noisy.embeddings(batch)
        if settings.pad == "longest":  # the encoder is causal: shorter padding only leaves positions out
            texts = shortened(texts, int(data.lengths[batch.rows].max()), data.pooled)
        own = owner[batch.rows.to(owner.device)]
        with shifted(unet, lambda output, own=own: output + vectors[own].to(output.dtype)):
            predicted = predict(unet, latents, batch.timesteps.to(latents.device), texts, settings.compute)
        loss = torch.nn.functional.mse_loss(predicted, noise)
        losses.append(checked(loss, update))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Learn the vectors [C, h, w] from the safe images.

    meta["unet_evaluations"] counts forward passes of single samples, meta["norms"] is the length of each
    vector. Raises ValueError for image sets that are empty or do not fit the target, or whose size is not the
    model's.
    """
    from palimpsest.methods._training import generator

    gathered = gather(pipeline, target, data, settings)
    side, wanted = gathered.noisy.means.shape[-1], pipeline.unet.config.sample_size
    if side != wanted:
        raise ValueError(
            f"the safe images have latents of side {side}, the UNet is made for {wanted}; a vector belongs to "
            "one size: make the images at the model's own resolution"
        )
    batches = draw(settings, len(gathered.noisy), gathered.noisy.timesteps, generator(seed, "selfd"))
    start = initial(pipeline, gathered.names, settings.init_range, generator(seed, "selfd/vectors"))
    vectors = start.to(pipeline.device).requires_grad_(True)
    losses = train(_private(pipeline.unet), vectors, gathered, batches, settings)
    tensors = {
        name: vector.detach().to("cpu", copy=True)
        for name, vector in zip(gathered.names, vectors, strict=True)
    }
    meta = {
        "settings": settings.model_dump(),
        "seed": seed,
        "images": len(gathered.noisy),
        "trained_parameters": vectors.numel(),
        "norms": {name: float(vector.norm()) for name, vector in tensors.items()},
        "losses": losses,
        "unet_evaluations": sum(len(batch.rows) for batch in batches),
    }
    return Artifact(tensors, meta)


@dataclass(frozen=True)
class Direction(Hook):
    """Adds a vector [C, h, w] to the middle block's output, in the rows of the branches named."""

    vector: Tensor
    branches: tuple[str, ...]

    @contextmanager
    def around(self, unet: Any, step: Step) -> Iterator[None]:
        import torch

        marked = [name in self.branches for name in step.branches]

        def shift(output: Tensor) -> Tensor:
            if output.shape[1:] != self.vector.shape:
                raise ValueError(
                    f"the direction was learned for {tuple(self.vector.shape)} at the bottleneck, here it is "
                    f"{tuple(output.shape[1:])}: sample at the resolution it was learned at"
                )
            vector = self.vector.to(output)
            parts = zip(output.chunk(len(marked)), marked, strict=True)
            return torch.cat([part + vector if chosen else part for part, chosen in parts])

        with shifted(unet, shift):
            yield


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the sum of the themes' vectors, times `settings.strength`, at every step."""
    if settings.strength == 0.0:
        return pipeline
    names = [JOINT] if JOINT in artifact.tensors else [theme.name for theme in target.themes]
    if missing := [name for name in names if name not in artifact.tensors]:
        raise ValueError(
            f"the artifact has directions of {sorted(artifact.tensors)}, the target needs {missing}; fit it "
            "for this target"
        )
    vector = sum(artifact.tensors[name].float() for name in names)
    branches = ("cond",) if settings.branches == "cond" else ("uncond", "cond")
    return pipeline.with_hook(Direction(settings.strength * vector, branches))
