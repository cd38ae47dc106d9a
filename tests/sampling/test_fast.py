"""Faster forms of a pipeline: the same images, and the pipeline that was given stays as it is."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from palimpsest import runs
from palimpsest.methods import safree, sd_np
from palimpsest.methods._gates import GatedBranches
from palimpsest.methods.contract import Artifact, Target, ThemeTarget
from palimpsest.params import Sampler
from palimpsest.sampling import fast
from palimpsest.sampling.loop import Request, generate
from palimpsest.sampling.pipeline import Hook
from tests import tiny

REQUESTS = [Request(f"r{i}", prompt, 40 + i) for i, prompt in enumerate(["a robot", "red house", "gears"])]
TARGET = Target((ThemeTarget("uncased", ("gears",), "a robot"),))


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def sampler(**changes) -> Sampler:
    return Sampler(**{"name": "ddim", "steps": 3, "guidance": 5.0, **changes})


def images(pipeline, settings) -> np.ndarray:
    return np.stack([g.image for g in generate(pipeline, REQUESTS, settings, 16)]).astype(int)


class Inside(Hook):
    def around(self, unet, step):
        return contextlib.nullcontext()


def on_cuda(pipeline, *hooks):
    """A stand-in for what `form` asks of a pipeline: its device and its hooks."""
    return SimpleNamespace(device="cuda:0", hooks=hooks)


def test_the_form_depends_on_device_dtype_and_hooks(pipeline) -> None:
    assert fast.form(pipeline, sampler()) == fast.Form("float32", True, False)
    assert not fast.form(pipeline, sampler(dtype="bfloat16")).channels_last
    half = fast.form(on_cuda(pipeline), sampler(dtype="bfloat16", compile=True))
    assert half == fast.Form("bfloat16", True, True)
    assert not fast.form(on_cuda(pipeline), sampler(compile=True)).channels_last
    inside = fast.form(on_cuda(pipeline, Hook(), Inside()), sampler(compile=True))
    assert not inside.compiled and inside.why == "Inside enters the UNet at every step"
    assert fast.entering([GatedBranches.__new__(GatedBranches)]) == ["GatedBranches"]


def test_on_the_cpu_nothing_is_compiled_and_the_log_says_why(pipeline, caplog) -> None:
    plain = images(pipeline, sampler())
    assert np.array_equal(images(pipeline, sampler(compile=True)), plain)
    assert "not compiled, because blocks are compiled on CUDA only" in caplog.text


@pytest.mark.slow
def test_compiled_blocks_make_the_same_images_and_leave_the_given_unet_alone(pipeline) -> None:
    seen: list[int] = []

    def backend(module, example):
        seen.append(len(list(module.graph.nodes)))
        return module.forward

    made = fast.compiled(pipeline, backend)
    assert np.abs(images(made, sampler()) - images(pipeline, sampler())).max() <= 1
    assert seen and max(seen) > 5
    blocks = [m for m in pipeline.unet.modules() if type(m).__name__ in fast.REGIONS]
    assert blocks and all(block._compiled_call_impl is None for block in blocks)
    assert all(a is b for a, b in zip(made.unet.parameters(), pipeline.unet.parameters(), strict=True))
    with pytest.raises(ValueError, match="none of the blocks"):
        fast.compiled(SimpleNamespace(unet=torch.nn.Linear(2, 2)), backend)


def test_channels_last_makes_the_same_images_and_leaves_the_given_weights_alone(
    pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fast.prepared(pipeline, sampler())
    for part in (made.unet, made.vae):
        kernels = [w for w in part.parameters() if w.ndim == 4 and w.shape[-1] == 3 and w.shape[1] > 1]
        assert kernels and all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels)
    assert pipeline.unet.conv_in.weight.is_contiguous()
    assert made.unet.time_embedding.linear_1.weight is pipeline.unet.time_embedding.linear_1.weight
    turned = images(pipeline, sampler())
    monkeypatch.setattr(fast, "channels_last", lambda made, given: made)
    assert fast.prepared(pipeline, sampler()).unet is pipeline.unet
    assert np.abs(images(pipeline, sampler()) - turned).max() <= 1


def _entered(inside: list[bool], evaluated: list[int]) -> None:
    inside.append(True)
    evaluated.append(1)


@pytest.mark.parametrize("method", ["sd", "sd_np", "safree"])
def test_every_attention_is_the_fused_one_whatever_hangs_in_the_unet(pipeline, method, monkeypatch) -> None:
    used = {
        "sd": lambda: pipeline,
        "sd_np": lambda: sd_np.apply(pipeline, Artifact(), TARGET, sd_np.Settings()),
        "safree": lambda: safree.apply(pipeline, Artifact(), TARGET, safree.Settings()),
    }[method]()
    inside: list[bool] = []
    calls: list[int] = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.extend(inside[-1:]) or fused(*a, **k)
    )
    evaluated: list[int] = []
    handles = [
        used.unet.register_forward_pre_hook(lambda module, args: _entered(inside, evaluated)),
        used.unet.register_forward_hook(lambda module, args, output: inside.clear()),
    ]
    images(used, sampler())
    for handle in handles:
        handle.remove()
    layers = sum(type(m).__name__ == "Attention" for m in used.unet.modules())
    assert layers > 4 and evaluated and len(calls) == layers * len(evaluated)


def test_compile_is_part_of_the_identity_only_where_it_is_on() -> None:
    assert "compile" not in runs.identity(sampler()) and runs.identity(sampler(compile=True))["compile"]
    assert not runs.same(sampler(), sampler(compile=True)) and runs.same(sampler(), sampler(batch=3))
    params = SimpleNamespace(sampler=sampler())
    assert runs.base_preset(params, sampler(compile=True)) == "ddim_3_g5_float32_compiled"
    assert runs.base_preset(params, sampler(batch=2)) == "default"
