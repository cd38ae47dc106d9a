"""Keys and values of the text, computed once for all steps: cross-attention projects the same embeddings at every step of a trajectory.

Nothing is approximated; the same tensor is used again instead of being computed again. A tenth of the operations of a small UNet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from palimpsest.sampling.fast import entering
from palimpsest.sampling.pipeline import Hook

if TYPE_CHECKING:
    from torch import Tensor

PROJECTIONS = (".attn2.to_k", ".attn2.to_v")


class Kept:
    """A projection that remembers its last result."""

    def __init__(self, project: Callable[..., Tensor]) -> None:
        self.project = project
        self.given: Tensor | None = None
        self.version = 0
        self.result: Tensor | None = None

    def __call__(self, texts: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.result is None or not self.same(texts) or args or kwargs:
            # what was given is held, so no other tensor can come to lie where it lies
            self.given, self.version = texts, texts._version
            self.result = self.project(texts, *args, **kwargs)
        return self.result

    def same(self, texts: Tensor) -> bool:
        """Whether these are the texts that were projected last, or an equal view of them, and unchanged."""
        known = self.given
        return known is not None and (
            texts.data_ptr() == known.data_ptr()
            and texts.shape == known.shape
            and texts.stride() == known.stride()
            and texts.dtype == known.dtype
            and texts._version == self.version
        )


@contextmanager
def projected_once(unet: Any, hooks: Sequence[Hook]) -> Iterator[None]:
    """Inside, every cross-attention of `unet` projects a tensor of texts once. To be entered for one trajectory, without gradients.

    Does nothing where hooks enter the UNet at each step, since they may change what a projection gives, and for compiled blocks.
    """
    if entering(hooks) or any(getattr(m, "_compiled_call_impl", None) for m in unet.modules()):
        yield
        return
    replaced = []
    try:
        for name, module in unet.named_modules():
            if name.endswith(PROJECTIONS):
                replaced.append((module, module.__dict__.get("forward")))
                module.forward = Kept(module.forward)
        yield
    finally:
        for module, before in replaced:
            if before is None:
                del module.forward
            else:
                module.forward = before
