"""Names of the attention weights of a UNet, as diffusers calls them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def weight_names(unet: Any, projections: Sequence[str], attentions: Sequence[str] = ("attn2",)) -> list[str]:
    """Parameters of the given projections ("to_q", "to_k", "to_v", "to_out") in the given attentions, in the
    module's order.

    "attn2" attends to the text, "attn1" to the image itself. Raises ValueError when the UNet has none.
    """
    marks = tuple(f".{attention}.{projection}." for attention in attentions for projection in projections)
    names = [name for name, _ in unet.named_parameters() if any(mark in name for mark in marks)]
    if not names:
        raise ValueError(
            f"{type(unet).__name__} has no {list(projections)} in {list(attentions)}: "
            "it is not conditioned on text"
        )
    return names
