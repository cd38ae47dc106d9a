"""SalUn, Saliency Unlearning: relabel unsafe images, and change only the weights that matter for them.

On noised unsafe images the prediction under their own caption is trained to equal that under a harmless caption, and
on safe images the usual denoising loss is kept:

    L = mean (e(q(z, t, n), t, bad) - stop-gradient e(q(z', t, n), t, good))^2 + alpha mean (e(q(r, s, m), s, own) - m)^2

Gradients are multiplied by a mask of the half of the UNet's weights for which a guided denoising loss on the unsafe
images has the largest gradient (Fan et al., ICLR 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from palimpsest.methods.contract import Artifact, Info, Target, TrainingData

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.methods._relabel import Bank, Draws, Evaluation, Material
    from palimpsest.methods._saliency import MaskDraws
    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="salun",
    title="SalUn",
    stage="fine-tuning",
    trains="UNet: the half of all weights that matter most for unsafe images",
    fits=True,
    paper="https://arxiv.org/abs/2310.12508",
    bibtex="@inproceedings{fan2024salun, title={{SalUn}: Empowering Machine Unlearning via Gradient-based Weight "
    "Saliency in Both Image Classification and Generation}, "
    "author={Fan, Chongyu and Liu, Jiancheng and Zhang, Yihua and Wong, Eric and Wei, Dennis and Liu, Sijia}, "
    "booktitle={International Conference on Learning Representations}, year={2024}}",
    code="https://github.com/OPTML-Group/Unlearn-Saliency",
    licence="MIT",
    fidelity="reimplemented from code",
    needs=("target_images", "safe_images"),
    architectures=("sd1", "sd2", "sdxl"),
)


class Settings(BaseModel):
    """Knobs of SalUn; the presets hold the official recipe and that of the benchmark paper, the defaults the latter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: Literal["full", "xattn"] = Field(
        "full", description="What is trained, within the mask: the UNet, or its cross-attention."
    )
    mask_ratio: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.5,
        description="Share of all weights of the UNet that may change, those with the largest gradients; null is "
        "no mask.",
    )
    c_guidance: float = Field(7.5, description="Guidance w in the mask's loss: (1 + w) e(bad) - w e(empty).")
    mask_images: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Unsafe images the mask is computed from; null is all, as officially."
    )
    alpha: Annotated[float, Field(ge=0)] = Field(0.1, description="Weight of the loss on safe images.")
    iterations: Annotated[int, Field(ge=1)] | None = Field(
        1000, description="Optimiser updates; null is `epochs` times through the unsafe images."
    )
    epochs: Annotated[int, Field(ge=1)] = Field(
        1, description="Passes over the unsafe images, when iterations is null."
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(
        8, description="Unsafe images per update, and as many safe ones."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-5, description="Step size of Adam.")
    shuffle: bool = Field(
        True,
        description="Batches mix themes and keywords, in a new order every pass; false takes the sets as they are, "
        "as the official code does.",
    )
    surrogate: str | None = Field(
        None,
        description="Harmless caption of all unsafe images; {safe} stands for the theme's surrogate. null puts the "
        "surrogate in the place of the keyword in each image's own prompt.",
    )
    posterior: Literal["samples", "mean"] = Field(
        "samples",
        description="Latents of images: samples of the autoencoder's posterior, for an unsafe image one per caption "
        "(official); or its mean, for a checkpoint that was trained on means or whose posterior is wide.",
    )
    compute: Literal["float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of UNet evaluations; weights and optimiser are always float32."
    )
    forward_batch: Annotated[int, Field(ge=1)] = Field(
        32, description="Samples per evaluation; gradients add up, so it changes speed and memory only."
    )
    stored: Literal["float32", "float16"] = Field(
        "float32",
        description="What the artifact holds: the weights, or their change in half precision, which is half as large.",
    )
    strength: float = Field(1.0, description="Share of the change that is applied; 0 is the base model.")


def plan_draws(found: Material, settings: Settings, timesteps: int, seed: int) -> tuple[MaskDraws, Draws]:
    """Everything random of a fit: of the mask, and of the updates."""
    from palimpsest.methods import _relabel, _saliency, _training

    count, size = len(found.bad), settings.batch_size
    updates = settings.iterations or settings.epochs * _relabel.batches_per_epoch(count, size)
    order: _relabel.Order = "shuffled" if settings.shuffle else "given"
    mask = _saliency.draw_mask(
        count, settings.mask_images, timesteps, _training.generator(seed, "salun/mask")
    )
    shape = (count, len(found.own)), (updates, size)
    return mask, _relabel.draw(*shape, order, timesteps, _training.generator(seed, "salun"))


def train(
    student: Any, bank: Bank, masks: Mapping[str, Tensor] | None, settings: Settings, how: Evaluation
) -> tuple[list[float], list[float]]:
    """Run all updates on `student`; returns L and its first term, for each."""
    import torch

    from palimpsest.methods._relabel import joined
    from palimpsest.methods._training import checked, trained

    own = trained(student)
    optimizer = torch.optim.Adam(list(own.values()), lr=settings.learning_rate)
    size, losses, forgetting = settings.batch_size, [], []
    for update in range(len(bank.draws.forget)):
        batches = [bank.forget_batch(student, update, how)]
        weights = torch.full((size,), 1 / size)
        if settings.alpha:
            batches.append(bank.remain_samples(update))
            weights = torch.cat([weights, settings.alpha * weights])
        optimizer.zero_grad()
        samples = joined(batches)
        weights = weights.to(samples.latents.device)
        errors = how.backward(student, samples, weights)
        losses.append(checked((weights * errors).sum(), update))
        forgetting.append(float(errors[:size].mean()))
        for name, mask in (masks or {}).items():
            gradient = own[name].grad
            if gradient is not None:
                gradient.mul_(mask)
        optimizer.step()
    return losses, forgetting


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Mask, then fine-tune on the unsafe and safe images. meta["unet_evaluations"] counts forward passes of single
    samples.

    Raises ValueError for images that are missing, fewer than a batch, or without a keyword in any caption.
    """
    from palimpsest.methods import _relabel, _saliency, _training
    from palimpsest.methods._stored import stored
    from palimpsest.methods.esd import parameter_names

    found = _relabel.material(pipeline, target, data, settings.surrogate, settings.batch_size)
    steps = int(pipeline.scheduler.config.num_train_timesteps)
    mask_draws, draws = plan_draws(found, settings, steps, seed)
    how, masks = _relabel.Evaluation(settings.compute, settings.forward_batch), None
    if settings.mask_ratio is not None:
        gradients = _saliency.gradients(
            pipeline, found, mask_draws, settings.c_guidance, settings.posterior, how
        )
        masks = _saliency.largest(gradients, settings.mask_ratio)
        del gradients
    student = _training.trainable_copy(pipeline.unet, parameter_names(pipeline.unet, settings.parameters))
    own = _training.trained(student)
    if masks is not None:
        masks = {name: masks[name] for name in own}
    bank = _relabel.bank(pipeline, found, draws, settings.posterior, how.batch)
    losses, forgetting = train(student, bank, masks, settings, how)
    sizes = own.values() if masks is None else masks.values()
    meta = {
        "settings": settings.model_dump(),
        "seed": seed,
        "images": [len(found.bad), len(found.own)],
        "captions": sorted([bad, good] for bad, good in set(zip(found.bad, found.good, strict=True)))[:100],
        "trained_parameters": sum(t.numel() if masks is None else int(t.sum()) for t in sizes),
        "losses": losses,
        "forgetting_losses": forgetting,
        "unet_evaluations": draws.forget.numel() * (3 if settings.alpha else 2)
        + (0 if masks is None else 2 * len(mask_draws.images)),
    }
    return Artifact(stored(student, pipeline.unet, settings.stored), meta)


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the trained weights at `settings.strength`."""
    from palimpsest.methods._stored import with_stored

    return with_stored(pipeline, artifact.tensors, settings.strength)
