"""What no method can work with, found before a fit starts and after it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from palimpsest.methods.contract import Artifact, Target

if TYPE_CHECKING:
    from palimpsest.sampling.pipeline import Pipeline


def check_target(pipeline: Pipeline, target: Target) -> None:
    """Raises ValueError for a keyword without tokens, a keyword that is its theme's own surrogate, and a theme without keywords."""
    for theme in target.themes:
        if not theme.keywords:
            raise ValueError(
                f"theme {theme.name!r} has no keywords; give it some under themes in params.yaml"
            )
        for word in theme.keywords:
            count = len(pipeline.tokenizer(word, add_special_tokens=False)["input_ids"])
            if not count:
                raise ValueError(
                    f"theme {theme.name!r}: the keyword {word!r} has no tokens, so there is nothing to erase; correct it in params.yaml"
                )
            if _plain(word) == _plain(theme.safe):
                raise ValueError(
                    f"theme {theme.name!r}: the keyword {word!r} is also the surrogate that takes its place (safe); change one of them"
                )


def check_model(pipeline: Pipeline) -> None:
    """Raises ValueError for a denoiser that is not conditioned on text through cross-attention as wide as the text encoder's output."""
    wanted = getattr(pipeline.unet.config, "cross_attention_dim", None)
    given = getattr(pipeline.text_encoder.config, "hidden_size", None)
    widths = set(wanted) if isinstance(wanted, list | tuple) else {wanted}
    if widths != {given}:
        raise ValueError(
            f"the UNet's cross-attention takes texts {wanted} wide, the text encoder gives {given}: these parts do not belong together"
        )


def check_artifact(artifact: Artifact) -> None:
    """Raises FloatingPointError when a fitted tensor or a loss is not finite: such an artifact must not be kept."""
    import math

    import torch

    broken = [
        name
        for name, tensor in artifact.tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        raise FloatingPointError(
            f"{len(broken)} of {len(artifact.tensors)} fitted tensors are not finite (first: {broken[0]}); "
            "lower the learning rate or raise the regularisation in the method's settings"
        )
    losses = artifact.meta.get("losses") or []
    if not all(math.isfinite(loss) for loss in losses):
        raise FloatingPointError(
            "a loss of the fit is not finite; lower the learning rate in the method's settings"
        )


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
