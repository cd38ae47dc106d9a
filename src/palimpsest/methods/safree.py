"""SAFREE: prompt tokens that lead to a concept are moved out of its subspace, in the first steps only.

With the projections P_C onto the span of the keywords' pooled embeddings and P_I onto the span of the prompt's
pooled embeddings with one token masked at a time:

    trigger   |(1 - P_C) p_i| >= (1 + alpha) mean_{j != i} |(1 - P_C) p_j|     p_i: prompt with token i masked
    filtered  e_i <- (1 - P_C) P_I e_i                                         for the trigger tokens i
    steps     0 .. round(most sigmoid(slope (beta - midpoint)))                use the filtered embeddings
              beta = 1 - mean_i cos((1 - P_C) P_I e_i, e_i)                    over start, text and end token

Re-attention runs the unchanged prompt beside the filtered one in those steps, and scales down the lowest
frequencies of the UNet's skip connections in which the filtered one exceeds it (Yoon et al., ICLR 2025,
jaehong31/SAFREE, models/modified_stable_diffusion_pipeline.py). Of Stable Diffusion XL only the states of the second
encoder are filtered, with its pooled embeddings; the first encoder's and the pooled row stay (the file for XL there).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from palimpsest.methods.contract import Artifact, Info, Target, TrainingData
from palimpsest.sampling.pipeline import Conditioning, Hook, Step
from palimpsest.specs import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from palimpsest.methods._subspace import Tokens
    from palimpsest.sampling.pipeline import Pipeline

INFO = Info(
    name="safree",
    title="SAFREE",
    stage="inference guidance",
    trains="nothing",
    fits=False,
    paper="https://arxiv.org/abs/2410.12761",
    bibtex="@inproceedings{yoon2025safree, title={SAFREE: Training-Free and Adaptive Guard for Safe "
    "Text-to-Image And Video Generation}, author={Yoon, Jaehong and Yu, Shoubin and Patil, Vaidehi and Yao, "
    "Huaxiu and Bansal, Mohit}, booktitle={International Conference on Learning Representations}, year={2025}}",
    code="https://github.com/jaehong31/SAFREE",
    licence="none stated",
    fidelity="reimplemented from code",
    architectures=("sd1", "sd2", "sdxl"),
)

Scale = Annotated[float, Field(ge=0)]
ORIGINAL = "original"
# The lowest frequencies are those of -1 and 0 on both sides, 2 x 2 of them (threshold 1 in the official code).
LOWEST = (-1, 0)


class Settings(Strict):
    """Knobs of SAFREE; the presets hold the official values."""

    alpha: float = Field(
        0.01, description="How much further than the others a masked prompt must lie to mark its token."
    )
    mask_id: Annotated[int, Field(ge=0)] = Field(
        0, description="Token id that masks a token; 0 is the exclamation mark in CLIP's vocabulary."
    )
    lone_token_triggers: bool = Field(
        True,
        description="Whether the only token of a prompt is a trigger. It has no others to be compared with; "
        "the official comparison with an undefined mean makes it one.",
    )
    negative_prompt: bool = Field(
        True,
        description="Guide away from the keywords, joined by commas, instead of the empty prompt. The official "
        "script always does, the paper does not mention it.",
    )
    validate_steps: bool = Field(
        True, description="Choose the number of steps per prompt (self-validation); false filters in all."
    )
    most_steps: Annotated[int, Field(ge=0)] = Field(
        10, description="Largest index of a filtered step, in steps as published (tuned at 50)."
    )
    most_fraction: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="The same as a share of the steps, in place of most_steps: for samplers with few steps.",
    )
    slope: float = Field(50.0, description="Slope of the sigmoid that turns beta into steps.")
    midpoint: float = Field(0.5333, description="The beta at which half of most_steps is filtered.")
    re_attention: bool = Field(
        False,
        description="Scale low frequencies of the skip connections down. The official script for this model "
        "passes the option, but its filter is never selected.",
    )
    wide_scale: Scale = Field(
        0.9, description="s1: factor where the backbone is widest (1280 channels in Stable Diffusion v1)."
    )
    next_scale: Scale = Field(
        0.2, description="s2: factor where the backbone has the second width (640 channels)."
    )
    strength: Scale = Field(
        1.0, description="How far embeddings move to the filtered ones (and to the negative prompt); 0: base."
    )


@dataclass(frozen=True)
class Filtered:
    """What the filter makes of one batch. texts: [B, 77, D]; share: sigmoid of each prompt's beta, [B]."""

    texts: Tensor
    share: Tensor


def filter_text(text: Tensor, tokens: Tokens, concept: Tensor, settings: Settings) -> tuple[Tensor, float]:
    """Filtered embeddings [77, D] of one prompt, and the share of the steps they are used in.

    text: its embeddings in float64; tokens: of the same prompt; concept: basis [D, r].
    """
    import torch
    from torch.nn.functional import cosine_similarity

    from palimpsest.methods import _subspace as space

    if tokens.count == 0:
        return text, 0.0
    own = space.onto(text, space.basis(tokens.pooled))
    moved = own - space.onto(own, concept)
    said = slice(0, tokens.count + 2)
    beta = 1 - cosine_similarity(moved[said], text[said]).mean()
    chosen = torch.zeros(len(text), dtype=torch.bool)
    chosen[1 : tokens.count + 1] = space.triggers(
        tokens, concept, settings.alpha, settings.lone_token_triggers
    )
    result = torch.where(chosen[:, None], torch.lerp(text, moved, settings.strength), text)
    return result, float(torch.sigmoid(settings.slope * (beta - settings.midpoint)))


def last_step(share: Tensor, count: int, settings: Settings) -> Tensor:
    """Index of the last filtered step of each prompt, [B], of `count` steps."""
    import torch

    if not settings.validate_steps:
        return torch.full_like(share, count)
    most: float = settings.most_steps
    if settings.most_fraction is not None:
        most = settings.most_fraction * count
    return torch.round(most * share)


def low_frequencies(height: int, width: int) -> Tensor:
    """The waves exp(-2 pi i (u y / h + v x / w)) of the lowest frequencies, complex64 [h w, 4]."""
    import torch

    y = torch.arange(height, dtype=torch.float64)[:, None] / height
    x = torch.arange(width, dtype=torch.float64)[None, :] / width
    waves = [torch.exp(-2j * torch.pi * (u * y + v * x)).flatten() for u in LOWEST for v in LOWEST]
    return torch.stack(waves, dim=1).to(torch.complex64)


def attenuate(filtered: Tensor, original: Tensor, scale: float) -> Tensor:
    """Features [B, C, h, w] with the lowest frequencies scaled in which they exceed the original ones (by
    real parts, as in the official code). The rest stays as it is.

    Four coefficients are enough; the whole Fourier transform would give the same.
    """
    import torch

    batch, channels, height, width = filtered.shape
    if min(height, width) < len(LOWEST):
        return filtered
    waves = low_frequencies(height, width).to(filtered.device)
    own, other = (t.float().flatten(2).to(waves.dtype) @ waves for t in (filtered, original))
    change = torch.where(own.real > other.real, (scale - 1) * own, torch.zeros_like(own))
    added = (change @ waves.conj().T).real / (height * width)
    return (filtered.float() + added.view(batch, channels, height, width)).to(filtered.dtype)


@dataclass
class Filter(Hook):
    """Filters embeddings per prompt and step. concept: basis [D, r]; batch: of one batch, from `begin`."""

    concept: Tensor
    settings: Settings
    batch: Filtered | None = field(default=None, repr=False)

    def embed(self, pipeline: Pipeline, conditioning: Conditioning) -> Conditioning:
        import torch

        from palimpsest.methods import _subspace as space

        texts, prompts = conditioning.branches["cond"], conditioning.prompts
        known = {p: space.masked_tokens(pipeline, p, self.settings.mask_id) for p in dict.fromkeys(prompts)}
        rows, columns = space.compared(pipeline)
        changed, shares = texts.double().cpu(), []
        for text, prompt in zip(changed, prompts, strict=True):
            part, share = filter_text(text[rows, columns].clone(), known[prompt], self.concept, self.settings)
            text[rows, columns] = part
            shares.append(share)
        filtered = Filtered(changed.to(texts), torch.tensor(shares, device=texts.device))
        return replace(conditioning, notes={**conditioning.notes, "safree": filtered})

    def begin(self, conditioning: Conditioning) -> Filter:
        return replace(self, batch=conditioning.notes["safree"])

    def active(self, step: Step) -> Tensor:
        """Which samples are filtered at this step, bool [B]."""
        assert self.batch is not None, "begin was not called"
        return step.index <= last_step(self.batch.share, step.count, self.settings)

    def states(self, step: Step, branches: dict[str, Tensor]) -> dict[str, Tensor]:
        import torch

        active = self.active(step)
        if self.batch is None or not active.any():
            return branches
        cond = torch.where(active[:, None, None], self.batch.texts, branches["cond"])
        extra = {ORIGINAL: branches["cond"]} if self.settings.re_attention else {}
        return {**branches, "cond": cond, **extra}

    @contextmanager
    def around(self, unet: Any, step: Step) -> Iterator[None]:
        if ORIGINAL not in step.branches or not self.settings.re_attention:
            yield
            return
        rows = self.active(step).nonzero()[:, 0]
        count = len(self.active(step))
        own, other = (step.branches.index(name) * count + rows for name in ("cond", ORIGINAL))
        scales = stage_scales(unet, self.settings)

        def before(block: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            skips = list(given["res_hidden_states_tuple"])
            widths = [given["hidden_states"].shape[1], *(r.out_channels for r in block.resnets[:-1])]
            for place, width in enumerate(widths, start=1):
                if width in scales:
                    skip = skips[-place].clone()
                    skip[own] = attenuate(skip[own], skip[other], scales[width])
                    skips[-place] = skip
            return args, {**given, "res_hidden_states_tuple": tuple(skips)}

        handles = [b.register_forward_pre_hook(before, with_kwargs=True) for b in unet.up_blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def stage_scales(unet: Any, settings: Settings) -> dict[int, float]:
    """Channels of the backbone -> factor on its skip connections, for the two largest widths."""
    widths: Sequence[int] = sorted(set(unet.config.block_out_channels), reverse=True)
    return dict(zip(widths, (settings.wide_scale, settings.next_scale), strict=False))


def fit(pipeline: Pipeline, target: Target, data: TrainingData, settings: Settings, seed: int) -> Artifact:
    """Nothing to fit."""
    return Artifact(meta={"unet_evaluations": 0, "losses": []})


def apply(pipeline: Pipeline, artifact: Artifact, target: Target, settings: Settings) -> Pipeline:
    """The pipeline with the filter, and with the keywords as negative prompt where the settings say so.

    Raises ValueError for a keyword without tokens and for a `mask_id` the text encoder does not have.
    """
    if settings.strength == 0.0:
        return pipeline
    from palimpsest.methods import _subspace as space
    from palimpsest.methods._keywords import check_keywords
    from palimpsest.methods.sd_np import NegativePrompt
    from palimpsest.sampling.embeddings import warn_when_cut

    check_keywords(pipeline, [(word, None) for word in target.keywords], "safree")
    space.compared(pipeline)
    size = pipeline.text_encoder.config.vocab_size
    if settings.mask_id >= size:
        raise ValueError(f"safree: mask_id {settings.mask_id} is no token; allowed: 0..{size - 1}")
    if settings.negative_prompt:
        warn_when_cut(pipeline, target.text, "safree")
        pipeline = pipeline.with_hook(NegativePrompt(target.text, settings.strength))
    return pipeline.with_hook(Filter(space.concept_space(pipeline, target.keywords), settings))
