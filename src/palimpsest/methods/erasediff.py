"""EraseDiff: keep safe images under the constraint that unsafe ones are forgotten.

Forgetting is a problem of its own, L_f; the safe images' loss L_r is minimised under the constraint that L_f is no
larger than what K steps on it alone would reach, q = L_f - L_f(after K steps) <= 0:

    update with  grad L_r + lambda grad q,   grad q = grad L_f, since the second term is taken as a constant

L_f trains the prediction for an unsafe image under its own caption towards that under a harmless caption (Wu et al.,
CVPR 2025). What the official code makes of this differs from the paper; see `mode`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from palimpsest.methods.contract import Artifact, Info, Target, TrainingData

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.methods._relabel import Bank, Draws, Evaluation, Material
    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="erasediff",
    title="EraseDiff",
    stage="fine-tuning",
    trains="UNet: everything but cross-attention, or all",
    fits=True,
    paper="https://arxiv.org/abs/2401.05779",
    bibtex="@inproceedings{wu2025erasediff, title={Erasing Undesirable Influence in Diffusion Models}, "
    "author={Wu, Jing and Le, Trung and Hayat, Munawar and Harandi, Mehrtash}, "
    "booktitle={Conference on Computer Vision and Pattern Recognition}, year={2025}}",
    code="https://github.com/JingWu321/EraseDiff",
    licence="MIT",
    fidelity="reimplemented from code",
    needs=("target_images", "safe_images"),
    architectures=("sd1", "sd2", "sdxl"),
)


class Settings(BaseModel):
    """Knobs of EraseDiff; the defaults are the official script for inappropriate content."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["official", "intended"] = Field(
        "official",
        description="official: what the released script computes, with one batch for everything and inner steps that "
        "reach the result through the optimiser's moments only. intended: the algorithm of the paper.",
    )
    parameters: Literal["noxattn", "full"] = Field(
        "noxattn",
        description="What is trained: everything but cross-attention and a few layers, or the UNet.",
    )
    weight_rule: Literal["constant", "gradient", "value", "cosine"] = Field(
        "constant",
        description="lambda. constant: forget_weight; gradient: max(0, eta - <g_r, g_q> / |g_q|^2), the paper's; value: "
        "max(0, (eta q - <g_r, g_q>) / |g_q|^2), with q measured by K inner steps; cosine: max(0, eta - cos(g_r, g_q)), "
        "which the official code asks for and cannot reach. All but constant need mode intended.",
    )
    forget_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="lambda, when it is constant.")
    eta: Annotated[float, Field(ge=0)] = Field(
        0.1, description="How far the constraint has to fall with every update, for the other rules."
    )
    inner_steps: Annotated[int, Field(ge=1)] = Field(
        2,
        description="K. official: inner and outer passes per epoch; intended: steps that measure q, needed by rule "
        "value only and not made for the others, whose result they cannot change.",
    )
    epochs: Annotated[int, Field(ge=1)] = Field(5, description="Epochs.")
    iterations: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Updates of one epoch (official: of one pass); null is as many as the unsafe images make batches.",
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(
        16, description="Unsafe images per update, and as many safe ones."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-5, description="Step size of Adam.")
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

    @model_validator(mode="after")
    def _combinations(self) -> Settings:
        if self.mode == "official" and self.weight_rule != "constant":
            raise ValueError(
                f"weight_rule {self.weight_rule!r} needs mode 'intended'; mode 'official' has 'constant' only"
            )
        return self


def updates(images: int, settings: Settings) -> int:
    """Updates of one epoch (of one pass in mode official)."""
    from palimpsest.methods._relabel import batches_per_epoch

    return settings.iterations or batches_per_epoch(images, settings.batch_size)


def draw(found: Material, settings: Settings, timesteps: int, seed: int) -> Draws:
    """Draw for every step of the optimiser: in mode official, K times inner and outer passes in turn, per epoch."""
    from palimpsest.methods import _relabel, _training

    count = settings.epochs * updates(len(found.bad), settings)
    official = settings.mode == "official"
    shape = (count * 2 * settings.inner_steps if official else count, settings.batch_size)
    counts = (len(found.bad), len(found.own))
    order: _relabel.Order = "first" if official else "shuffled"
    return _relabel.draw(counts, shape, order, timesteps, _training.generator(seed, "erasediff"))


class Trainer:
    """One student and its optimiser. Gradients of both losses add up in the parameters."""

    def __init__(self, student: Any, bank: Bank, settings: Settings) -> None:
        import torch

        from palimpsest.methods._relabel import Evaluation
        from palimpsest.methods._training import trained

        self.student, self.bank, self.settings = student, bank, settings
        self.how: Evaluation = Evaluation(settings.compute, settings.forward_batch)
        self.parameters: list[Tensor] = list(trained(student).values())
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate)
        self.size = settings.batch_size

    def inner(self, step: int, optimizer: Any) -> float:
        """One step on L_f alone; returns it."""
        optimizer.zero_grad()
        loss = self.forget(step)
        optimizer.step()
        return loss

    def forget(self, step: int) -> float:
        """Add the gradient of L_f; returns L_f."""
        from palimpsest.methods._training import checked

        batch = self.bank.forget_batch(self.student, step, self.how)
        return checked(self.how.backward(self.student, batch, self._weights(1.0, batch)).mean(), step)

    def remain(self, step: int) -> float:
        """Add the gradient of L_r; returns L_r."""
        from palimpsest.methods._training import checked

        batch = self.bank.remain_samples(step)
        return checked(self.how.backward(self.student, batch, self._weights(1.0, batch)).mean(), step)

    def both(self, step: int, weight: float) -> tuple[float, float]:
        """Add the gradient of L_r + weight * L_f from one evaluation of both batches; returns L_r and L_f."""
        import torch

        from palimpsest.methods._relabel import joined
        from palimpsest.methods._training import checked

        forget, remain = self.bank.forget_batch(self.student, step, self.how), self.bank.remain_samples(step)
        weights = torch.cat([self._weights(weight, forget), self._weights(1.0, remain)])
        errors = self.how.backward(self.student, joined([forget, remain]), weights)
        checked(errors.mean(), step)
        return float(errors[self.size :].mean()), float(errors[: self.size].mean())

    def _weights(self, weight: float, batch: Any) -> Tensor:
        import torch

        return torch.full((self.size,), weight / self.size, device=batch.latents.device)

    def values(self) -> list[Tensor]:
        """Copies of the trained parameters."""
        return [parameter.detach().clone() for parameter in self.parameters]

    def restore(self, values: list[Tensor]) -> None:
        """Put copies back; the optimiser's moments stay."""
        import torch

        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)

    def gradients(self) -> list[Tensor]:
        """Take the gradients out of the parameters; zeros where there are none."""
        import torch

        taken = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self.optimizer.zero_grad()
        return taken


def train_official(trainer: Trainer, passes: int) -> dict[str, list[float]]:
    """The released script: every pass of every epoch ends where its last outer pass ends, and starts from the weights
    at the start of the epoch, so that the outer passes before the last are undone.
    """
    settings, weight, step = trainer.settings, trainer.settings.forget_weight, 0
    record: dict[str, list[float]] = {"losses": [], "forgetting_losses": [], "inner_losses": []}
    for _ in range(settings.epochs):
        start = trainer.values()
        for _ in range(settings.inner_steps):
            inner = [trainer.inner(step + index, trainer.optimizer) for index in range(passes)]
            step += passes
            best = sum(inner) / passes
            trainer.restore(start)
            for _ in range(passes):
                trainer.optimizer.zero_grad()
                remain, forget = trainer.both(step, weight)
                trainer.optimizer.step()
                record["losses"].append(remain + weight * (forget - best))
                record["forgetting_losses"].append(forget)
                step += 1
            record["inner_losses"] += inner
    return record


def reachable(trainer: Trainer, step: int) -> float:
    """L_f after K steps on it, with the draws of this step and an optimiser of its own; the weights are put back."""
    import torch

    start = trainer.values()
    optimizer = torch.optim.Adam(trainer.parameters, lr=trainer.settings.learning_rate)
    for _ in range(trainer.settings.inner_steps):
        trainer.inner(step, optimizer)
    batch = trainer.bank.forget_batch(trainer.student, step, trainer.how)
    errors = trainer.how.predictions(trainer.student, batch) - batch.targets
    trainer.restore(start)
    optimizer.zero_grad()
    return float(errors.square().mean())


def chosen_weight(remain: list[Tensor], forget: list[Tensor], q: float, settings: Settings) -> float:
    """lambda by the gradients of L_r and of q, and by q for rule value; 0 where L_f has no gradient."""
    inner = float(sum((a * b).sum() for a, b in zip(remain, forget, strict=True)))
    square, other = (float(sum(g.square().sum() for g in gradient)) for gradient in (forget, remain))
    if square == 0.0:
        return 0.0
    if settings.weight_rule == "cosine":
        return max(0.0, settings.eta - inner / ((square * other) ** 0.5 + 1e-8))
    wanted = settings.eta * (q if settings.weight_rule == "value" else square)
    return max(0.0, (wanted - inner) / square)


def train_intended(trainer: Trainer, count: int) -> dict[str, list[float]]:
    """The paper's algorithm: a fresh batch pair per update, lambda by the rule."""
    settings = trainer.settings
    record: dict[str, list[float]] = {"losses": [], "forgetting_losses": [], "weights": []}
    for step in range(count):
        trainer.optimizer.zero_grad()
        if settings.weight_rule == "constant":
            weight, q = settings.forget_weight, 0.0
            remain, forget = trainer.both(step, weight)
            q = forget
        else:
            best = reachable(trainer, step) if settings.weight_rule == "value" else 0.0
            forget = trainer.forget(step)
            forgetting = trainer.gradients()
            remain = trainer.remain(step)
            q = forget - best
            keeping = trainer.gradients()
            weight = chosen_weight(keeping, forgetting, q, settings)
            for parameter, kept, forgot in zip(trainer.parameters, keeping, forgetting, strict=True):
                parameter.grad = kept.add_(forgot, alpha=weight)
        trainer.optimizer.step()
        record["losses"].append(remain + weight * q)
        record["forgetting_losses"].append(forget)
        record["weights"].append(weight)
    return record


def evaluations(draws: Draws, settings: Settings) -> int:
    """Forward passes of single samples: two for L_f, its target being one, and one for L_r."""
    samples = draws.forget.numel()
    if settings.mode == "official":
        return samples // 2 * (2 + 3)
    measured = 2 * (settings.inner_steps + 1) if settings.weight_rule == "value" else 0
    return samples * (3 + measured)


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Fine-tune on the unsafe and safe images. meta["unet_evaluations"] counts forward passes of single samples.

    Raises ValueError for images that are missing, fewer than a batch, or without a keyword in any caption.
    """
    from palimpsest.methods import _relabel, _training
    from palimpsest.methods._stored import stored
    from palimpsest.methods.esd import parameter_names

    found = _relabel.material(pipeline, target, data, settings.surrogate, settings.batch_size)
    draws = draw(found, settings, int(pipeline.scheduler.config.num_train_timesteps), seed)
    student = _training.trainable_copy(pipeline.unet, parameter_names(pipeline.unet, settings.parameters))
    bank = _relabel.bank(pipeline, found, draws, settings.posterior, settings.forward_batch)
    trainer = Trainer(student, bank, settings)
    if settings.mode == "official":
        record = train_official(trainer, updates(len(found.bad), settings))
    else:
        record = train_intended(trainer, len(draws.forget))
    meta = {
        "settings": settings.model_dump(),
        "seed": seed,
        "images": [len(found.bad), len(found.own)],
        "captions": sorted([bad, good] for bad, good in set(zip(found.bad, found.good, strict=True)))[:100],
        "trained_parameters": sum(p.numel() for p in trainer.parameters),
        **record,
        "unet_evaluations": evaluations(draws, settings),
    }
    return Artifact(stored(student, pipeline.unet, settings.stored), meta)


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the trained weights at `settings.strength`."""
    from palimpsest.methods._stored import with_stored

    return with_stored(pipeline, artifact.tensors, settings.strength)
