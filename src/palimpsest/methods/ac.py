"""AC, Ablating Concepts: make the prediction for "anchor prompt with the concept in it" equal the prediction
for the anchor prompt.

On a noised image of the anchor, x_t, with the anchor's prompt p and the same prompt with a keyword in it, p*:

    L = mean over the batch of  sum(mask (e(x_t, t, p*) - stop-gradient e(x_t, t, p))^2) / sum(mask)

The target comes from the network that is being trained, not from a frozen copy, and the mask has one channel
while the error has four, so that without augmentation L is four times the mean squared error; both as in the
official code (Kumari et al., ICCV 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from palimpsest.methods.contract import Artifact, Info, Target, TrainingData

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.methods._anchors import Anchor, Item
    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="ac",
    title="AC",
    stage="fine-tuning",
    trains="UNet: cross-attention keys and values, or all attention",
    fits=True,
    paper="https://arxiv.org/abs/2303.13516",
    bibtex="@inproceedings{kumari2023ablating, title={Ablating Concepts in Text-to-Image Diffusion Models}, "
    "author={Kumari, Nupur and Zhang, Bingliang and Wang, Sheng-Yu and "
    "Shechtman, Eli and Zhang, Richard and Zhu, Jun-Yan}, "
    "booktitle={International Conference on Computer Vision}, year={2023}}",
    code="https://github.com/nupurkmr9/concept-ablation",
    licence="MIT",
    fidelity="reimplemented from code",
    needs=("safe_images",),
    architectures=("sd1", "sd2", "sdxl"),
)


class Settings(BaseModel):
    """Knobs of AC; the presets hold the official recipes. The defaults are the one for styles, one GPU."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: Literal["cross-attn", "attn", "full-weight"] = Field(
        "cross-attn",
        description="What is trained: cross-attention keys and values; all projections of self- and "
        "cross-attention; the UNet.",
    )
    loss: Literal["model", "noise"] = Field(
        "model",
        description="Target: the prediction for the anchor prompt, or the noise that was added (the velocity, for a "
        "checkpoint that predicts it).",
    )
    insertion: Literal["style", "inappropriate", "object"] = Field(
        "style",
        description='How a keyword T enters a prompt p. style: "p, in the style of T" (1/3) or "in T\'s '
        'style, p" (2/3); inappropriate: "T, p", "in T style, p" or "p, T" (1/3 each); object: the theme\'s '
        "surrogate in p is replaced by T.",
    )
    iterations: Annotated[int, Field(ge=1)] = Field(200, description="Optimiser updates.")
    batch_size: Annotated[int, Field(ge=1)] = Field(
        4, description="Anchor images per update (twice that with prior preservation)."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(2e-6, description="Base step size of AdamW.")
    scale_lr: bool = Field(
        True, description="Multiply the step size by the batch size, and by two with prior preservation."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-2, description="Decoupled weight decay of AdamW.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Largest norm of the gradient of all trained parameters."
    )
    prior_preservation: bool = Field(
        False, description="Add as many plain anchors with the usual denoising loss to every batch."
    )
    prior_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="Weight of that loss.")
    detach_start: bool = Field(
        True, description="No gradient through the keys and values of the start token (official)."
    )
    hflip: bool = Field(True, description="Mirror half of the images.")
    noaug: bool = Field(True, description="No resizing augmentation with its words in the prompt.")
    compute: Literal["float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of UNet evaluations; weights and optimiser are always float32."
    )
    forward_batch: Annotated[int, Field(ge=1)] = Field(
        32, description="Images per encoding without gradients; changes speed only."
    )
    strength: float = Field(1.0, description="Share of the change that is applied; 0 is the base model.")

    @property
    def step_size(self) -> float:
        """The step size AdamW is given."""
        factor = self.batch_size * (2 if self.prior_preservation else 1)
        return self.learning_rate * (factor if self.scale_lr else 1)


def parameter_names(unet: Any, settings: Settings) -> list[str]:
    """Names of the trained parameters, in the module's order."""
    from palimpsest.methods._cross_attention import weight_names

    if settings.parameters == "cross-attn":
        return weight_names(unet, ("to_k", "to_v"))
    if settings.parameters == "attn":
        return weight_names(unet, ("to_q", "to_k", "to_v", "to_out"), ("attn1", "attn2"))
    return [name for name, _ in unet.named_parameters()]


def detach_start_token(unet: Any) -> None:
    """Stop gradients through keys and values of the first text position, in every cross-attention of this
    module (in place).
    """
    import torch

    def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)

    for name, module in unet.named_modules():
        if name.endswith((".attn2.to_k", ".attn2.to_v")):
            module.register_forward_hook(hook)


@dataclass
class Batches:
    """Turns items into tensors. Text embeddings and posteriors of images (mean and deviation) are computed
    once.

    Both caches are emptied when they hold `limit` entries, so memory stays bounded for long runs.
    """

    pipeline: Pipeline
    found: Sequence[Anchor]
    settings: Settings
    limit: int = 1024
    _texts: dict[str, Tensor] = field(default_factory=dict)
    _images: dict[Any, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def embeddings(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings [N, 77, D] in float32."""
        import torch

        from palimpsest.sampling.embeddings import encode

        if len(self._texts) >= self.limit:
            self._texts.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            self._texts |= zip(new, encode(self.pipeline, new).float(), strict=True)
        return torch.stack([self._texts[text] for text in texts])

    def posteriors(self, items: Sequence[Item]) -> tuple[Tensor, Tensor, Tensor]:
        """Means and deviations [N, C, h, w] of the latents before scaling, and masks [N, 1, h, w]."""
        import torch

        if len(self._images) >= self.limit:
            self._images.clear()
        keys = [(item.anchor, item.flip, item.place) for item in items]
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in self._images}
        for start in range(0, len(new), self.settings.forward_batch):
            part = list(new)[start : start + self.settings.forward_batch]
            self._images |= zip(part, self._encoded([new[key] for key in part]), strict=True)
        means, deviations, masks = zip(*(self._images[key] for key in keys), strict=True)
        return torch.stack(means), torch.stack(deviations), torch.stack(masks)

    def _encoded(self, items: Sequence[Item]) -> list[tuple[Tensor, Tensor, Tensor]]:
        import torch

        from palimpsest.methods._anchors import placed

        vae = self.pipeline.vae
        cell = 2 ** (len(vae.config.block_out_channels) - 1)
        pixels, masks = zip(
            *(placed(self.found[item.anchor].image, item, cell) for item in items), strict=True
        )
        with torch.no_grad():
            latents = vae.encode(torch.stack(pixels).to(vae.device, vae.dtype)).latent_dist
        masks = torch.stack(masks).to(vae.device)
        return list(zip(latents.mean.float(), latents.std.float(), masks, strict=True))

    def ahead(self, batches: Sequence[Sequence[Item]]) -> None:
        """Encode what the next updates need, in large batches."""
        items = [item for batch in batches for item in batch]
        self.embeddings([text for item in items for text in (item.concept, item.prompt)])
        self.posteriors(items)

    def noised(self, items: Sequence[Item], scheduler: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noised latents x_t, their timesteps [N], what a denoising loss asks for (the noise or the velocity), and the masks."""
        import torch

        from palimpsest.methods._relabel import denoising_target
        from palimpsest.methods._training import normal

        means, deviations, masks = self.posteriors(items)
        draws = normal([item.seed for item in items], (2, *means.shape[1:])).to(means.device)
        clean = (means + deviations * draws[:, 0]) * self.pipeline.vae.config.scaling_factor
        timesteps = torch.tensor([item.timestep for item in items], device=means.device)
        wanted = denoising_target(scheduler, clean, draws[:, 1], timesteps)
        return scheduler.add_noise(clean, draws[:, 1], timesteps), timesteps, wanted, masks


def loss_of(student: Any, batches: Batches, items: Sequence[Item], scheduler: Any) -> Tensor:
    """The loss of one batch; the graph reaches the trained parameters of `student`."""
    import torch

    from palimpsest.methods._training import predict

    settings = batches.settings
    latents, timesteps, asked, masks = batches.noised(items, scheduler)
    count = settings.batch_size
    concepts = batches.embeddings([item.concept for item in items])
    predicted = predict(student, latents, timesteps, concepts, settings.compute)
    if settings.loss == "model":
        with torch.no_grad():
            anchors = batches.embeddings([item.prompt for item in items[:count]])
            wanted = predict(student, latents[:count], timesteps[:count], anchors, settings.compute)
    else:
        wanted = asked[:count]
    masks = masks[:count]
    error = (predicted[:count] - wanted).square() * masks
    # A small pasted image may cover no whole cell; such a sample adds nothing.
    loss = (error.sum([1, 2, 3]) / masks.sum([1, 2, 3]).clamp(min=1)).mean()
    if settings.prior_preservation:
        loss = loss + settings.prior_weight * torch.nn.functional.mse_loss(predicted[count:], asked[count:])
    return loss


def train(student: Any, batches: Batches, draws: Sequence[Sequence[Item]], scheduler: Any) -> list[float]:
    """Run all updates on `student`; returns the loss of each."""
    import torch

    from palimpsest.methods._training import checked, trained

    settings = batches.settings
    parameters = list(trained(student).values())
    optimizer = torch.optim.AdamW(parameters, lr=settings.step_size, weight_decay=settings.weight_decay)
    losses, window = [], max(1, settings.forward_batch // len(draws[0]))
    for update, items in enumerate(draws):
        if update % window == 0:
            batches.ahead(draws[update : update + window])
        loss = loss_of(student, batches, items, scheduler)
        losses.append(checked(loss, update))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
    return losses


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Fine-tune on the safe images. meta["unet_evaluations"] counts forward passes of single samples.

    Raises ValueError when no safe images are given, for a keyword without tokens, and when "object" insertion
    finds no surrogate in any prompt or a keyword that is its own surrogate.
    """
    from diffusers import DDPMScheduler

    from palimpsest.methods import _training
    from palimpsest.methods._anchors import Recipe, anchors, draw_items
    from palimpsest.methods._keywords import check_keywords

    replaces = settings.insertion == "object"
    words = [(word, theme.safe if replaces else None) for theme in target.themes for word in theme.keywords]
    check_keywords(pipeline, words, "ac")
    found = anchors(target, data)
    if replaces and not any(anchor.safe in anchor.prompt for anchor in found):
        raise ValueError(
            f"insertion 'object' replaces the surrogate, but no prompt contains "
            f"{sorted({a.safe for a in found})}; set `safe` of the theme to a word of its safe prompts, or "
            "insertion to 'style' or 'inappropriate'"
        )
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    shared = settings.model_dump(
        include={"insertion", "iterations", "batch_size", "hflip", "noaug", "prior_preservation"}
    )
    recipe = Recipe(**shared, train_timesteps=scheduler.config.num_train_timesteps)
    draws = draw_items(found, recipe, _training.generator(seed, "ac"))
    student = _training.trainable_copy(pipeline.unet, parameter_names(pipeline.unet, settings))
    if settings.detach_start:
        detach_start_token(student)
    losses = train(student, Batches(pipeline, found, settings), draws, scheduler)
    samples = sum(len(batch) for batch in draws)
    meta = {
        "settings": settings.model_dump(),
        "seed": seed,
        "anchors": len(found),
        "concepts": sorted({word for anchor in found for word in anchor.keywords}),
        "step_size": settings.step_size,
        "trained_parameters": sum(p.numel() for p in _training.trained(student).values()),
        "losses": losses,
        "unet_evaluations": samples
        + (settings.iterations * settings.batch_size if settings.loss == "model" else 0),
    }
    return Artifact(_training.snapshot(student), meta)


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the trained parameters at `settings.strength`."""
    from palimpsest.methods._weights import with_edited

    return with_edited(pipeline, "unet", artifact.tensors, settings.strength)
