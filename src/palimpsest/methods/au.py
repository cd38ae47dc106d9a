"""AU, AdvUnlearn: fine-tune the text encoder to erase a concept even behind an adversarial prefix.

With the frozen UNet's prediction e*, the concept c and the empty prompt 0, an attack looks for a soft prefix
a such that the trained text encoder's "a c" leads to e*(c); the encoder is then trained so that "a c" leads
to the negatively guided prediction instead, while benign prompts r keep theirs:

    attack:  min over a of      || e(x_t, a c) - e*(c) ||^2
    erase:   min over encoder   || e(x_t, a c) - (e*(0) - eta (e*(c) - e*(0))) ||^2
    retain:  min over encoder   || e(x_t, r) - e*(r) ||^2

(Zhang et al., NeurIPS 2024, equations 4 to 6). Only the text encoder changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from palimpsest.methods._stops import check
from palimpsest.methods.contract import Artifact, Info, Target, TrainingData, keyword_prompts

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.methods._bank import Bank, Batch, Sample
    from palimpsest.methods._rounds import Round
    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="au",
    title="AU",
    stage="fine-tuning",
    trains="text encoder layers and final norm",
    fits=True,
    paper="https://arxiv.org/abs/2405.15234",
    bibtex="@inproceedings{zhang2024defensive, title={Defensive Unlearning with Adversarial Training for Robust "
    "Concept Erasure in Diffusion Models}, author={Zhang, Yimeng and Chen, Xin and Jia, Jinghan and Zhang, "
    "Yihua and Fan, Chongyu and Liu, Jiancheng and Hong, Mingyi and Ding, Ke and Liu, Sijia}, "
    "booktitle={Advances in Neural Information Processing Systems}, year={2024}}",
    code="https://github.com/OPTML-Group/AdvUnlearn",
    licence="CC-BY-4.0",
    fidelity="reimplemented from code",
    architectures=("sd1", "sd2"),
    not_for={
        "sdxl": "its attack looks for a prefix in the embedding space of one text encoder and its defence trains that encoder; with two "
        "encoders and a pooled embedding neither is defined"
    },
)

TRAINED = ("encoder.layers.", "final_layer_norm.")


class Settings(BaseModel):
    """Knobs of AU; the defaults are those of the official command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    iterations: Annotated[int, Field(ge=1)] = Field(1000, description="Erasing updates.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-5, description="Step size of Adam.")
    batch_size: Annotated[int, Field(ge=1)] = Field(
        1, description="Latents per erasing update and per attack step, each with its own noise and stop."
    )
    negative_guidance: float = Field(1.0, description="eta above.")
    concept_mode: Literal["joint", "sample"] = Field(
        "joint", description="One prompt of all keywords joined by commas, or one keyword drawn per attack."
    )
    warmup_iterations: Annotated[int, Field(ge=0)] = Field(
        200, description="First updates, on the plain concept without an attack."
    )
    attack_every: Annotated[int, Field(ge=1)] = Field(
        1, description="Updates between two attacks (and two draws of the keyword)."
    )
    attack: Literal["pgd", "fast_at"] = Field(
        "pgd",
        description="pgd: Adam on the prefix (the official name; nothing is projected); fast_at: Adam on the "
        "gradient's sign.",
    )
    attack_steps: Annotated[int, Field(ge=1)] = Field(30, description="Steps of an attack.")
    attack_learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="Step size of the attack.")
    attack_init: Literal["latest", "random"] = Field(
        "latest", description="Where an attack starts: the last one's prefix, or random words."
    )
    prefix_tokens: Annotated[int, Field(ge=1, le=75)] = Field(1, description="Vectors of the prefix.")
    prefix_layout: Literal["words", "tokens"] = Field(
        "words",
        description="What the prefix displaces: the tokens after as many as the concept has words (official; "
        "cuts a piece of a word that is several tokens), or those after the whole concept.",
    )
    accumulate_gradients: bool = Field(
        True, description="An attack steps along the sum of all its gradients so far (official)."
    )
    stale_prefix: bool = Field(
        True, description="An attack returns the prefix before its last step (official)."
    )
    retain_mode: Literal["iter", "reg", "off"] = Field(
        "iter",
        description="iter: updates of their own after each erasing one; reg: one sum of both losses, at the "
        "same timesteps; off: no retained prompts.",
    )
    retain_steps: Annotated[int, Field(ge=1)] = Field(1, description="Retaining updates, with iter.")
    retain_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Weight of retaining, with reg; iter ignores it, as the official code does."
    )
    retain_batch: Annotated[int, Field(ge=1)] = Field(
        5, description="Retained prompts per update, drawn without replacement; all when there are fewer."
    )
    start_guidance: Annotated[float, Field(ge=1)] = Field(
        3.0, description="Guidance of the partial sampling."
    )
    stop_rule: Literal["compvis", "exact"] = Field(
        "compvis",
        description="compvis: the sampler of the official code, which leaves the latent about 40 timesteps "
        "less noisy than the UNet is told; exact: the latent's own timestep.",
    )
    scheduler: Literal["checkpoint", "ddim", "pndm", "dpmsolver++"] = Field(
        "ddim", description="Sampler of the latents; checkpoint is the one saved with the model."
    )
    steps: Annotated[int, Field(ge=2, le=1000)] = Field(50, description="Steps of a full trajectory.")
    compute: Literal["float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of UNet evaluations; weights and optimiser are always float32."
    )
    forward_batch: Annotated[int, Field(ge=1)] = Field(
        32, description="Samples per evaluation without gradients; changes speed only."
    )
    ahead: Annotated[int, Field(ge=1)] = Field(
        512, description="Latents made ahead of their use; changes memory and speed only."
    )
    strength: float = Field(1.0, description="Share of the change that is applied; 0 is the base model.")

    @model_validator(mode="after")
    def _combinations(self) -> Settings:
        check(self.stop_rule, self.scheduler)
        return self


def parameter_names(text_encoder: Any) -> list[str]:
    """Names of the trained parameters: all layers and the final norm, but no embeddings."""
    return [name for name, _ in text_encoder.named_parameters() if name.startswith(TRAINED)]


@dataclass(frozen=True)
class _Job:
    """What stays the same during one fit. ids: tokens [T, 77] of concepts, then retained prompts; kept: of
    each concept, how many tokens stand before those that the prefix displaces."""

    settings: Settings
    bank: Bank
    student: Any
    ids: Tensor
    kept: Sequence[int]

    def concept_text(self, concept: int, prefix: Tensor | None) -> Tensor:
        """The student's embedding [1, 77, D] of a concept, behind a prefix [k, D] when there is one."""
        from palimpsest.methods._soft_prompt import encode_prefixed, prefix_layout

        if prefix is None:
            return self.student(self.ids[concept][None]).last_hidden_state
        ids = prefix_layout(self.ids[concept], self.kept[concept], len(prefix))
        return encode_prefixed(self.student, ids[None], prefix)

    def plain_texts(self, samples: Sequence[Sample]) -> Tensor:
        """The student's embeddings [N, 77, D] of the samples' texts."""
        return self.student(self.ids[[sample.text for sample in samples]]).last_hidden_state

    def predict(self, batch: Batch, texts: Tensor) -> Tensor:
        """The frozen UNet's predictions for the student's texts [N or 1, 77, D]."""
        from palimpsest.methods._training import predict

        texts = texts.expand(len(batch.latents), -1, -1)
        return predict(self.bank.frozen.unet, batch.latents, batch.timesteps, texts, self.settings.compute)


def attack(
    job: _Job, concept: int, start: Tensor, batches: Iterator[Batch], count: int
) -> tuple[Tensor, float]:
    """A prefix [k, D] found in `count` steps from `start`, and the loss of the last step."""
    import torch

    from palimpsest.methods._training import checked

    settings = job.settings
    prefix = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([prefix], lr=settings.attack_learning_rate)
    total, before, last = torch.zeros_like(prefix), start, 0.0
    for step in range(count):
        batch = next(batches)
        before = prefix.detach().clone()
        predicted = job.predict(batch, job.concept_text(concept, prefix))
        loss = torch.nn.functional.mse_loss(predicted, batch.targets)
        last = checked(loss, step)
        (gradient,) = torch.autograd.grad(loss, [prefix])
        total = total + gradient if settings.accumulate_gradients else gradient
        if settings.attack == "fast_at":
            total = total.sign()  # the official code does this in place, so the sum goes on from the signs
        prefix.grad = total.clone()
        optimizer.step()
    return before if settings.stale_prefix else prefix.detach(), last


def _erasing_loss(job: _Job, drawn: Round, prefix: Tensor | None, batch: Batch) -> tuple[Tensor, Tensor]:
    """Losses of erasing and of the retained samples beside it, from one evaluation of the UNet."""
    import torch

    count = len(drawn.erase)
    texts = job.concept_text(drawn.concept, prefix).expand(count, -1, -1)
    if drawn.beside:
        texts = torch.cat([texts, job.plain_texts(drawn.beside)])
    error = (job.predict(batch, texts) - batch.targets).square()
    return error[:count].mean(), error[count:].mean() if drawn.beside else error.new_zeros(())


def train(job: _Job, rounds: Sequence[Round]) -> dict[str, list[float]]:
    """Run all updates on the student; returns the losses of erasing, retaining and attacks."""
    import torch

    from palimpsest.methods._training import checked, trained

    settings, parameters = job.settings, list(trained(job.student).values())
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
    ready = job.bank.stream((batch for drawn in rounds for batch in drawn.batches), settings.ahead)
    prefix: Tensor | None = None
    losses: dict[str, list[float]] = {"losses": [], "retain_losses": [], "attack_losses": []}

    def update(loss: Tensor) -> None:
        # Gradients are asked for by name: nothing is computed for parameters that are not trained.
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()

    for index, drawn in enumerate(rounds):
        if drawn.attack:
            start = prefix
            if start is None or settings.attack_init == "random":
                start = job.student.get_input_embeddings().weight[list(drawn.start)]
            prefix, last = attack(job, drawn.concept, start, ready, len(drawn.attack))
            losses["attack_losses"].append(last)
        erasing, beside = _erasing_loss(job, drawn, prefix, next(ready))
        losses["losses"].append(checked(erasing + settings.retain_weight * beside, index))
        if drawn.beside:
            losses["retain_losses"].append(float(beside.detach()))
        update(erasing + settings.retain_weight * beside)
        for samples in drawn.retain:
            batch = next(ready)
            loss = torch.nn.functional.mse_loss(job.predict(batch, job.plain_texts(samples)), batch.targets)
            losses["retain_losses"].append(checked(loss, index))
            update(loss)
    return losses


def texts_of(
    pipeline: Pipeline, target: Target, settings: Settings
) -> tuple[list[str], list[str], list[int]]:
    """Concepts, retained prompts, and for each concept how many of its tokens the prefix leaves in place.

    Raises ValueError for a concept without tokens, and when there is nothing to retain.
    """
    from palimpsest.sampling.embeddings import token_count, warn_when_cut

    concepts = list(keyword_prompts(target, settings.concept_mode))
    for concept in concepts:
        if not token_count(pipeline, concept):
            raise ValueError(f"the concept {concept!r} has no tokens, so there is nothing to erase; name it")
        warn_when_cut(pipeline, concept, "au")
    retained = [] if settings.retain_mode == "off" else list(dict.fromkeys(target.retain))
    if settings.retain_mode != "off" and not retained:
        raise ValueError(
            f"retain_mode {settings.retain_mode!r} needs benign prompts to hold fixed, and there are none: "
            "list some under `retain` in the settings of the experiment (params.yaml), or set the method's "
            "retain_mode to 'off'"
        )
    room = pipeline.tokenizer.model_max_length - 2
    if settings.prefix_layout == "words":
        kept = [len(concept.split()) for concept in concepts]
    else:
        kept = [min(token_count(pipeline, concept), room) for concept in concepts]
    return concepts, retained, kept


def draw_rounds(
    pipeline: Pipeline, settings: Settings, concepts: int, retained: int, seed: int
) -> list[Round]:
    """Everything random of a fit. concepts, retained: how many there are."""
    from palimpsest.methods._rounds import Drawer
    from palimpsest.methods._stops import schedule
    from palimpsest.methods._training import generator
    from palimpsest.sampling.schedulers import build

    scheduler, sampler = schedule(pipeline, settings)
    words = len(pipeline.text_encoder.get_input_embeddings().weight)
    timesteps = build(sampler.name, scheduler.config, sampler.steps).timesteps
    trained_on = int(scheduler.config.num_train_timesteps)
    source = generator(seed, "au")
    return Drawer(settings, concepts, retained, words, timesteps, trained_on, source).rounds()


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Train a float32 copy of the text encoder. meta["unet_evaluations"] counts forward passes of single
    samples.

    Raises ValueError when there is nothing to erase or retain, and for a UNet without cross-attention.
    """
    from palimpsest.methods import _training
    from palimpsest.methods._bank import Bank
    from palimpsest.methods._cross_attention import weight_names
    from palimpsest.methods._stops import schedule
    from palimpsest.sampling.embeddings import encode, token_ids

    weight_names(pipeline.unet, ("to_k", "to_v"))
    concepts, retained, kept = texts_of(pipeline, target, settings)
    student = _training.trainable_copy(pipeline.text_encoder, parameter_names(pipeline.text_encoder))
    embeds = encode(pipeline, ["", *concepts, *retained]).float().to(pipeline.device)
    scheduler, sampler = schedule(pipeline, settings)
    frozen = replace(pipeline, unet=_training.in_float32(pipeline.unet), scheduler=scheduler)
    bank = Bank(
        frozen, sampler, settings, embeds[1:], embeds[:1], settings.negative_guidance, settings.compute
    )
    ids = token_ids(pipeline, [*concepts, *retained]).to(pipeline.text_encoder.device)
    rounds = draw_rounds(pipeline, settings, len(concepts), len(retained), seed)
    losses = train(_Job(settings, bank, student, ids, kept), rounds)
    samples = [sample for drawn in rounds for batch in drawn.batches for sample in batch]
    meta = {
        "settings": settings.model_dump(),
        "seed": seed,
        "concepts": concepts,
        "retained": len(retained),
        "attacks": len(losses["attack_losses"]),
        "trained_parameters": sum(p.numel() for p in _training.trained(student).values()),
        **losses,
        "unet_evaluations": bank.evaluations(samples) + len(samples),
    }
    return Artifact(_training.snapshot(student), meta)


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the trained text encoder at `settings.strength`; the empty prompt goes through it too."""
    from palimpsest.methods._weights import with_edited

    return with_edited(pipeline, "text_encoder", artifact.tensors, settings.strength)
