"""Low-rank side branches on every linear and convolution layer inside the transformer blocks of a UNet, and
what is needed to train them.

A layer W with a branch gives  W x + (alpha / r) B A x.  A has r rows and B as many columns; B starts at zero, so
training starts from the base model. Branches of S concepts lie one after the other in the rows of A and the
columns of B, and a matrix G [S, S] for every sample says how they are combined:  W x + (alpha / r) B (G x I) A x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import Conv2d, Linear
from torch.nn import functional as F

from palimpsest.methods import _training
from palimpsest.sampling.twins import twin

if TYPE_CHECKING:
    from palimpsest.sampling.pipeline import Pipeline
    from palimpsest.specs import Sampler

Told = Literal["rescaled", "own"]


def layers(unet: Any) -> dict[str, Any]:
    """Name -> layer, in the module's order: 192 in Stable Diffusion v1. Raises ValueError when there are none."""
    found = {
        f"{block}.{name}": layer
        for block, module in unet.named_modules()
        if type(module).__name__ == "Transformer2DModel"
        for name, layer in module.named_modules()
        if isinstance(layer, Linear | Conv2d)
    }
    if not found:
        raise ValueError(
            f"{type(unet).__name__} has no Transformer2DModel with linear or convolution layers: there is "
            "nothing to lay branches on; use a UNet that is conditioned on text by cross-attention"
        )
    return found


def initial(unet: Any, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """New branches: "<layer>.down" [r, in] or [r, in, k, k], uniform within 1 / sqrt(inputs of one row), and
    "<layer>.up" [out, r], zero.

    A convolution with fewer channels than `rank` gets as many as it has, as in the official code.
    """
    tensors = {}
    for name, layer in layers(unet).items():
        out, *inputs = layer.weight.shape
        size = min(rank, inputs[0], out) if isinstance(layer, Conv2d) else rank
        drawn = torch.rand((size, *inputs), generator=generator)
        tensors[f"{name}.down"] = (2 * drawn - 1) / math.sqrt(math.prod(inputs))
        tensors[f"{name}.up"] = torch.zeros(out, size)
    return tensors


def stacked(adapters: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Branches of several concepts in one set of tensors, with the concept as first dimension."""
    return {name: torch.stack([adapter[name] for adapter in adapters]) for name in adapters[0]}


@dataclass(frozen=True)
class Branch:
    """The branch of one layer. down: [S r, in(, k, k)]; up: [out, S r]; scale: alpha / r; parts: S."""

    down: Tensor
    up: Tensor
    scale: float
    parts: int = 1


def prepared(tensors: Mapping[str, Tensor], alpha: float, like: Tensor) -> dict[str, Branch]:
    """Layer -> branch, of tensors that `stacked` gave, on the device and in the dtype of `like`."""
    found = {}
    for name in tensors:
        layer, _, leaf = name.rpartition(".")
        if leaf == "down":
            down, up = tensors[name].to(like), tensors[f"{layer}.up"].to(like)
            parts, rank = down.shape[:2]
            found[layer] = Branch(down.flatten(0, 1), up.transpose(0, 1).flatten(1), alpha / rank, parts)
    return found


def _places(unet: Any, branches: Mapping[str, Branch]) -> dict[str, Any]:
    """The layers that `branches` belong to. Raises ValueError for one that does not fit this UNet."""
    own = layers(unet)
    for name, branch in branches.items():
        fits = name in own and own[name].weight.shape[:2] == (len(branch.up), branch.down.shape[1])
        if not fits:
            raise ValueError(
                f"the branch of layer {name!r} does not fit this {type(unet).__name__}: it was fitted on another "
                "checkpoint; fit the method on this one"
            )
    return {name: own[name] for name in branches}


@contextmanager
def attached(unet: Any, branches: Mapping[str, Branch], mixing: Tensor | None = None) -> Iterator[None]:
    """The UNet with branches while the context lasts; afterwards it is as it was.

    mixing: G of every sample of a batch, [N, S, S]; None adds all branches as they are. Raises ValueError for
    branches of another UNet.
    """
    handles = [
        layer.register_forward_hook(partial(_add_branch, branches[name], mixing))
        for name, layer in _places(unet, branches).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_branch(
    branch: Branch, mixing: Tensor | None, layer: Any, inputs: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    if isinstance(layer, Conv2d):
        inner = F.conv2d(inputs[0], branch.down, None, layer.stride, layer.padding, layer.dilation)
        return output + F.conv2d(_mixed(branch, mixing, inner, 1), branch.up[:, :, None, None])
    inner = _mixed(branch, mixing, F.linear(inputs[0], branch.down), -1)
    # One pass over the output instead of a product and then a sum.
    return torch.addmm(output.flatten(0, -2), inner.flatten(0, -2), branch.up.t()).view_as(output)


def _mixed(branch: Branch, mixing: Tensor | None, inner: Tensor, dim: int) -> Tensor:
    """(alpha / r) (G x I) applied to the inner values; their dimension `dim` is S times r."""
    if branch.scale != 1.0:
        inner = inner * branch.scale
    if mixing is None:
        return inner
    parts = inner.movedim(dim, -1).unflatten(-1, (branch.parts, -1))
    mixed = torch.einsum("nst,n...tr->n...sr", mixing.to(inner), parts)
    return mixed.flatten(-2).movedim(-1, dim)


def change(branch: Branch, shape: torch.Size) -> Tensor:
    """What the branches add to the weight of their layer, (alpha / r) B A, in the given shape."""
    return (branch.scale * (branch.up @ branch.down.flatten(1))).view(shape)


def merged(pipeline: Pipeline, tensors: Mapping[str, Tensor], alpha: float, strength: float) -> Pipeline:
    """The pipeline with all branches in its weights: without gates the same function, at no cost in sampling.

    Computed in float32, stored in the UNet's own type. Raises ValueError for branches of another UNet.
    """
    branches = prepared(tensors, alpha, torch.empty(0, device=pipeline.device))
    edited = {}
    for name, layer in _places(pipeline.unet, branches).items():
        weight = layer.weight.detach()
        edited[f"{name}.weight"] = weight.float() + strength * change(branches[name], weight.shape)
    return pipeline.with_weights("unet", edited)


class Student:
    """A UNet in three forms that share all tensors they can: frozen, with trainable branches, and with the
    branches merged into the weights, which is what partial sampling uses.

    parameters: name -> parameter, see `initial`. The given UNet is left as it is.
    """

    def __init__(self, unet: Any, rank: int, alpha: float, generator: torch.Generator) -> None:
        self.frozen = _training.in_float32(unet)
        drawn = initial(unet, rank, generator)
        self.parameters = {n: torch.nn.Parameter(t.to(self.frozen.device)) for n, t in drawn.items()}
        names = [name.removesuffix(".down") for name in drawn if name.endswith(".down")]
        pairs = {n: (self.parameters[f"{n}.down"], self.parameters[f"{n}.up"]) for n in names}
        self.branches = {n: Branch(down, up, alpha / len(down)) for n, (down, up) in pairs.items()}
        self.branched = _without_gradients(self.frozen)
        for name, layer in _places(self.branched, self.branches).items():
            layer.register_forward_hook(partial(_add_branch, self.branches[name], None))
        self._merged = _training.trainable_copy(self.frozen, [f"{name}.weight" for name in names])

    @torch.no_grad()
    def merged(self) -> Any:
        """The UNet with the branches of this moment in its weights: a step of sampling costs what it costs
        without branches. Valid until the next call.
        """
        frozen, ours = layers(self.frozen), layers(self._merged)
        for name, branch in self.branches.items():
            weight = frozen[name].weight
            torch.add(weight, change(branch, weight.shape), out=ours[name].weight)
        return self._merged

    def snapshot(self) -> dict[str, Tensor]:
        """Detached CPU copies of the branches."""
        return {name: p.detach().to("cpu", copy=True) for name, p in self.parameters.items()}


def _without_gradients(module: Any) -> Any:
    """A copy that shares every tensor with `module` and gets no gradients."""
    return twin(
        module, {id(p): torch.nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    )


def evaluate(
    unet: Any, latents: Tensor, timesteps: Tensor, texts: Mapping[str, Tensor], dtype: _training.Dtype
) -> dict[str, Tensor]:
    """Predictions [B, C, h, w] for every text in one batch; texts: name -> [B, L, D]."""
    count = len(texts)
    noise = _training.predict(
        unet, latents.repeat(count, 1, 1, 1), timesteps.repeat(count), torch.cat(list(texts.values())), dtype
    )
    return dict(zip(texts, noise.chunk(count), strict=True))


@dataclass(frozen=True)
class Route:
    """How latents get part of the way from noise: `template` is a scheduler whose settings are used.

    own: timesteps of the sampler; fine: those of a run with as many steps as the model was trained on.
    """

    template: Any
    sampler: Sampler
    own: Tensor
    fine: Tensor

    def told(self, stops: Tensor, rule: Told) -> Tensor:
        """The timestep the UNet is told for latents after `stops` steps.

        "own": the one the latent stands at. "rescaled": entry floor(stops * 1000 / steps) of the run with all
        steps, which is what the official codes use.
        """
        if rule == "own":
            return self.own[stops]
        return self.fine[stops * len_of(self.template) // self.sampler.steps]

    def latents(
        self, pipeline: Pipeline, unet: Any, texts: Sequence[Tensor], noise: Tensor, stops: Sequence[int],
        dtype: _training.Dtype,
    ) -> Tensor:  # fmt: skip
        """Latents [N, C, h, w] after `stops` steps of `unet`. texts: of the concept [N, L, D], of the empty prompt
        [1, L, D]; noise: standard normal.
        """
        from palimpsest.sampling.trajectory import partial_denoise

        used = replace(pipeline, unet=unet, scheduler=self.template)
        with _training.arithmetic(dtype, pipeline.device):
            return partial_denoise(used, *texts, noise, stops, self.sampler)


def route(template: Any, sampler: Sampler) -> Route:
    """The route of a sampler with the settings of the scheduler `template`."""
    from palimpsest.sampling.schedulers import build

    own, fine = (
        build(sampler.name, template.config, steps).timesteps.long().cpu()
        for steps in (sampler.steps, len_of(template))
    )
    return Route(template, sampler, own, fine)


def len_of(scheduler: Any) -> int:
    """Timesteps the checkpoint was trained on."""
    return int(scheduler.config.num_train_timesteps)
