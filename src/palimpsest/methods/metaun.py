"""MetaUn, Meta-Unlearning: erase a concept and, in the same updates, make the model lose what it knows about
safe subjects as soon as it is fine-tuned on the concept again.

One update goes along

    grad L_erase + g11 grad L_irt + g12 grad L_tgt                                    at the weights w
    - g21 grad L_hrm(w') - g22 grad L_tgt(w') - g23 grad L_irt(w'),   w': w fine-tuned on harmful images

with the denoising losses L_hrm, L_tgt, L_irt of images that are harmful, safe and related, safe and unrelated.
The gradients at w' are used at w as they are, without second derivatives. L_erase is that of ESD with eta 3, or
that of SDD, |e(x_t, c) - e(x_t, empty)|^2 (Gao et al., ICCV 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from palimpsest.methods.contract import Artifact, Info, Target, TrainingData

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.methods import esd
    from palimpsest.methods._relearning import Material, Round
    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="metaun",
    title="MetaUn",
    stage="fine-tuning",
    trains="UNet, all of it or parts",
    fits=True,
    paper="https://arxiv.org/abs/2410.12777",
    bibtex="@inproceedings{gao2025meta, title={Meta-Unlearning on Diffusion Models: Preventing Relearning "
    "Unlearned Concepts}, author={Gao, Hongcheng and Pang, Tianyu and Du, Chao and Hu, Taihang and Deng, Zhijie "
    "and Lin, Min}, booktitle={International Conference on Computer Vision}, year={2025}}",
    code="https://github.com/sail-sg/Meta-Unlearning",
    licence="none stated",
    fidelity="reimplemented from code",
    needs=("target_images", "safe_images"),
    architectures=("sd1", "sd2", "sdxl"),
)
Weight = Annotated[float, Field(ge=0)]


class Settings(BaseModel):
    """Knobs of Meta-Unlearning; the defaults are those of the official example script as it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: Literal["esd", "sdd"] = Field(
        "esd",
        description="Loss of erasure: ESD (2023) on latents of the student, or SDD on latents of the frozen UNet.",
    )
    parameters: Literal["full", "noxattn", "xattn", "selfattn", "notime"] = Field(
        "full", description="What is trained, in the official names; relearning always moves everything."
    )
    negative_guidance: float = Field(3.0, description="eta of ESD.")
    start_guidance: Annotated[float, Field(ge=1)] = Field(
        3.0, description="Guidance of the partial sampling."
    )
    steps: Annotated[int, Field(ge=2, le=1000)] = Field(50, description="Steps of a full DDIM trajectory.")
    iterations: Annotated[int, Field(ge=1)] = Field(1500, description="Optimiser updates.")
    concepts_per_update: Annotated[int, Field(ge=1)] = Field(
        1, description="Samples of the loss of erasure per update, each with its own concept, noise and stop."
    )
    concept_mode: Literal["joint", "sample"] = Field(
        "sample", description="One prompt of all keywords joined by commas, or one keyword drawn per sample."
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(
        10, description="Images per pass; the last pass through a set has what is left."
    )
    images_per_set: Annotated[int, Field(ge=1)] = Field(
        30,
        description="Most images in each of the four sets: harmful for relearning and for its test, safe and "
        "related, safe and unrelated. Every update goes through them all.",
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        1e-5, description="Step size of AdamW, of relearning too."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="Decoupled weight decay of AdamW.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Largest norm of the summed gradient, and of each gradient in relearning."
    )
    gamma1_1: Weight = Field(0.1, description="Weight of keeping the unrelated images, at the weights.")
    gamma1_2: Weight = Field(0.01, description="Weight of keeping the related images, at the weights.")
    gamma2_1: Weight = Field(
        0.01, description="Weight of losing the harmful images, at the relearned weights."
    )
    gamma2_2: Weight = Field(
        1.0, description="Weight of losing the related images, at the relearned weights."
    )
    gamma2_3: Weight = Field(
        1.0, description="Weight of losing the unrelated images, at the relearned weights."
    )
    fixed_timesteps: tuple[Annotated[int, Field(ge=0, lt=1000)], ...] = Field(
        (),
        description="Timesteps of the image passes outside of relearning, each gone through in turn and summed; "
        "empty: drawn per image.",
    )
    compute: Literal["float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of UNet evaluations; weights and optimiser are always float32."
    )
    forward_batch: Annotated[int, Field(ge=1)] = Field(
        32, description="Samples per evaluation without gradients; changes speed only."
    )
    strength: float = Field(1.0, description="Share of the change that is applied; 0 is the base model.")


def parameter_names(unet: Any, parameters: str) -> list[str]:
    """Names of the trained parameters, in the module's order."""
    chosen = {
        "full": lambda name: True,
        "xattn": lambda name: "attn2" in name,
        "selfattn": lambda name: "attn1" in name,
        "noxattn": lambda name: not _of_time(name) and "attn2" not in name,
        "notime": lambda name: not _of_time(name),
    }[parameters]
    return [name for name, _ in unet.named_parameters() if chosen(name)]


def _of_time(name: str) -> bool:
    return name.startswith("conv_out.") or "time_embed" in name


def erasing(settings: Settings) -> esd.Settings:
    """The settings under which ESD computes what is needed here: latents of both variants, and ESD's loss."""
    from palimpsest.methods import esd

    same = (
        "negative_guidance", "start_guidance", "steps", "iterations", "learning_rate", "concept_mode", "compute",
        "forward_batch",
    )  # fmt: skip
    return esd.Settings(
        **settings.model_dump(include=set(same)),
        batch_size=settings.concepts_per_update,
        trajectory="student" if settings.variant == "esd" else "frozen",
        stop_rule="binned",
    )


def sdd_loss(job: esd.Job, student: Any, draws: esd.Draws, update: int, latents: Tensor) -> Tensor:
    """SDD's loss of one update: the student's prediction for the concept against its own for the empty prompt."""
    import torch

    from palimpsest.methods._training import predict

    which, told = draws.concepts[update], draws.timesteps[update].to(latents.device)
    with torch.no_grad():
        empty = job.empty.expand(len(which), -1, -1)
        wanted = predict(student, latents, told, empty, job.settings.compute)
    predicted = predict(student, latents, told, job.concepts[which], job.settings.compute)
    return torch.nn.functional.mse_loss(predicted, wanted)


def train(
    job: esd.Job,
    student: Any,
    draws: esd.Draws,
    found: Material,
    rounds: Sequence[Round],
    settings: Settings,
) -> tuple[list[float], list[float]]:
    """Run all updates on `student`; returns the loss of erasure and, after relearning, the loss on harmful images
    of each.
    """
    import torch

    from palimpsest.methods import esd
    from palimpsest.methods._relearning import accumulate, relearned
    from palimpsest.methods._training import checked, trained

    parameters = list(trained(student).values())
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    frozen = None
    if settings.variant == "sdd":
        flat = [values.flatten() for values in (draws.concepts, draws.stops, draws.seeds)]
        frozen = job.latents(job.frozen.unet, *flat).split(settings.concepts_per_update)
    losses, harm = [], []
    for update, passes in enumerate(rounds):
        if frozen is None:
            loss = esd.loss_of(job, student, draws, update)
        else:
            loss = sdd_loss(job, student, draws, update, frozen[update])
        losses.append(checked(loss, update))
        optimizer.zero_grad()
        loss.backward()
        accumulate(student, found, passes.before, settings.compute, update)
        if passes.after:
            with relearned(student, found, passes.relearning, settings, update):
                seen = accumulate(student, found, passes.after, settings.compute, update)
            own = [value for value, term in zip(seen, passes.after, strict=True) if term.part == "harm"]
            harm += [sum(own) / len(own)] if own else []
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
    return losses, harm


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Train a float32 copy. meta["unet_evaluations"] counts forward passes of single samples, meta["harm_losses"]
    is the denoising loss on harmful images after relearning, per update.

    Raises ValueError for image sets that do not fit the target or hold fewer than two images.
    """
    from palimpsest.methods import _training, esd
    from palimpsest.methods._relearning import draw_rounds, material

    found = material(pipeline, target, data, settings)
    job, draws, concepts = esd.prepare(pipeline, target, erasing(settings), seed, "metaun")
    rounds = draw_rounds(found, settings, _training.generator(seed, "metaun"))
    frozen = job.frozen.unet
    student = _training.trainable_copy(frozen, [name for name, _ in frozen.named_parameters()])
    names = set(parameter_names(frozen, settings.parameters))
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in names)
    losses, harm = train(job, student, draws, found, rounds, settings)
    branches = 2 if settings.start_guidance > 1 else 1
    passes = 3 if settings.variant == "esd" else 2
    images = sum(one.samples for one in rounds)
    meta = {
        "settings": settings.model_dump(),
        "seed": seed,
        "concepts": [concept for concept, _ in concepts],
        "images": {
            "relearning": found.harm_half,
            "harmful": len(found.harm) - found.harm_half,
            "related": found.safe_half,
            "unrelated": len(found.safe) - found.safe_half,
        },
        "trained_parameters": sum(p.numel() for p in _training.trained(student).values()),
        "losses": losses,
        "harm_losses": harm,
        "unet_evaluations": branches * int(draws.stops.sum()) + passes * draws.stops.numel() + images,
    }
    return Artifact(_training.snapshot(student), meta)


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the trained parameters at `settings.strength`."""
    from palimpsest.methods._weights import with_edited

    return with_edited(pipeline, "unet", artifact.tensors, settings.strength)
