"""The pipeline every method changes: the components of a Stable Diffusion checkpoint plus the hooks of methods.

A pipeline is a value: applying a method returns a new one, and the old one keeps giving the same images. Edited weights are
laid over the components without copying the tensors that stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from palimpsest.sampling.twins import twin

if TYPE_CHECKING:
    from torch import Tensor

Component = Literal["unet", "text_encoder", "vae"]


@dataclass(frozen=True)
class Decision:
    """What a guard decided about one prompt. `prompt` replaces the original when `action` is "rewritten"."""

    action: Literal["allowed", "blocked_prompt", "rewritten"]
    reason: str = ""
    prompt: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is conditioned on for one batch.

    branches: name -> text embeddings [B, 77, D]. "uncond" and "cond" always exist; guidance hooks may add more (SLD adds
        "safety"). The UNet is evaluated once per step on all branches, in the order of this mapping.
    latents: initial noise [B, C, h, w], already multiplied by the scheduler's initial sigma.
    notes: what a hook's `embed` leaves for its own `begin`, by the hook's name.
    """

    prompts: tuple[str, ...]
    branches: dict[str, Tensor]
    latents: Tensor
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """Where the loop stands: `index` of the step (0-based), number of steps `count`, and the scheduler's `timestep`.

    branches: names in the order of evaluation (in `Hook.states` those of the conditioning, since it decides about this step's).
    """

    index: int
    count: int
    timestep: Any
    branches: tuple[str, ...] = ()


class Hook:
    """The places in which a method may change a generation, in pipeline order. Every default does nothing.

    A hook is shared by all batches, so state that belongs to one batch lives in the object that `begin` returns.
    """

    def guard(self, prompts: Sequence[str]) -> list[Decision]:
        """Decide about prompts before anything is computed."""
        return [Decision("allowed") for _ in prompts]

    def embed(self, pipeline: Pipeline, conditioning: Conditioning) -> Conditioning:
        """Change embeddings, add a branch, or change the initial latents, once per batch."""
        return conditioning

    def begin(self, conditioning: Conditioning) -> Hook:
        """Return the hook to use for this batch; a hook with state returns a fresh copy of itself."""
        return self

    def states(self, step: Step, branches: dict[str, Tensor]) -> dict[str, Tensor]:
        """Embeddings to use at this step, when they change with it: `branches` as they are, or another mapping (with branches
        added or left out; "cond" stays, and "uncond" where it is given).

        Called before every evaluation of the UNet, with what `embed` made of the conditioning, never with the last step's result.
        """
        return branches

    def around(self, unet: Any, step: Step) -> AbstractContextManager[Any]:
        """A context in which the UNet is evaluated at this step (module hooks)."""
        return nullcontext()

    def guide(self, step: Step, noise: dict[str, Tensor], latents: Tensor, guidance: float) -> Tensor | None:
        """Combine the noise predictions of the branches (each [B, C, h, w]); None leaves it to classifier-free guidance."""
        return None

    def after_step(self, step: Step, latents: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Change the latents after a scheduler step; map batch positions to a reason to stop them."""
        return latents, {}

    def edit(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, dict[int, str]]:
        """Change decoded images (uint8 [B, H, W, 3]); map batch positions to what was done to them."""
        return images, {}

    def withhold(self, images: Tensor, prompts: Sequence[str]) -> dict[int, str]:
        """Look at the finished images and map batch positions to a reason not to hand them out (safety checkers)."""
        return {}


@dataclass(frozen=True)
class Pipeline:
    """The components of one checkpoint and the hooks laid on them.

    unet: UNet2DConditionModel; vae: AutoencoderKL; text_encoder: CLIPTextModel; tokenizer: CLIPTokenizer;
    scheduler: the checkpoint's own scheduler (a template: the loop builds a fresh one from its config for every batch).
    resolution: side of the images that this checkpoint makes, scaled to the experiment's afterwards; None: the experiment's own.
    text_encoder_2, tokenizer_2: the second ones of Stable Diffusion XL (`sampling.sdxl`), None elsewhere. zero_empty: guidance takes
    zeros in place of the empty prompt's embedding, as the base checkpoint of XL was trained.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    hooks: tuple[Hook, ...] = field(default=())
    resolution: int | None = None
    text_encoder_2: Any = None
    tokenizer_2: Any = None
    zero_empty: bool = False

    @property
    def device(self) -> Any:
        return self.unet.device

    @property
    def dtype(self) -> Any:
        return self.unet.dtype

    def with_hook(self, hook: Hook) -> Self:
        """The same components with one more hook at the end."""
        return replace(self, hooks=(*self.hooks, hook))

    def with_weights(self, component: Component, tensors: Mapping[str, Tensor]) -> Self:
        """The same pipeline with some weights of one component replaced; every other tensor is shared, none is written to.

        tensors: parameter or buffer name -> new value of the same shape. Raises ValueError for a name or shape that the
        component does not have.
        """
        module = getattr(self, component)
        return replace(self, **{component: overlay(module, tensors)})


def overlay(module: Any, tensors: Mapping[str, Tensor]) -> Any:
    """A module that shares all tensors with `module` but those named in `tensors`. `module` is left as it is.

    Raises ValueError naming the first tensor that does not fit.
    """
    import torch

    own: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, value in tensors.items():
        if name not in own:
            near = sorted(n for n in own if n.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1])[:5]
            raise ValueError(f"no tensor {name!r} in {type(module).__name__}; similar names: {near}")
        if own[name].shape != value.shape:
            raise ValueError(f"{name}: shape {tuple(value.shape)} does not fit {tuple(own[name].shape)}")
    edited: dict[int, Tensor] = {}
    with torch.no_grad():
        for name, value in tensors.items():
            edited[id(own[name])] = _like(own[name]).copy_(value)
    return twin(module, edited)


def _like(tensor: Tensor) -> Tensor:
    """A tensor of the same kind (parameter or buffer), shape and dtype, on the same device; not filled."""
    import torch

    empty = torch.empty_like(tensor)
    return (
        torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
        if isinstance(tensor, torch.nn.Parameter)
        else empty
    )
