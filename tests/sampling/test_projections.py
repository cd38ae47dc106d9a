"""Keys and values of the text are computed once for a trajectory, and nothing else changes."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

from palimpsest.params import Sampler
from palimpsest.sampling import loop
from palimpsest.sampling.loop import Request, generate
from palimpsest.sampling.pipeline import Hook
from palimpsest.sampling.projections import Kept, projected_once
from tests import tiny

SAMPLER = Sampler(name="ddim", steps=4, guidance=5.0, batch=3, dtype="float32")
REQUESTS = [Request(f"{n}", text, n) for n, text in enumerate(("a robot", "a gear", "a red house"))]


def pictures(pipeline) -> np.ndarray:
    return np.stack([made.image for made in generate(pipeline, REQUESTS, SAMPLER, tiny.RESOLUTION)])


@contextmanager
def counted(unet):
    calls: Counter[str] = Counter()
    handles = []
    linears = {
        name: module.forward for name, module in unet.named_modules() if name.endswith((".to_k", ".to_v"))
    }
    for name, module in unet.named_modules():
        if name in linears:

            def counting(given, name=name, project=linears[name]):
                calls[name] += 1
                return project(given)

            module.forward = counting
            handles.append(module)
    yield calls
    for module in handles:
        del module.forward


def test_each_text_is_projected_once_and_pictures_are_the_same_bits(monkeypatch):
    pipeline = tiny.build()
    with counted(pipeline.unet) as calls:
        once = pictures(pipeline)
    text = {name: count for name, count in calls.items() if ".attn2." in name}
    image = {name: count for name, count in calls.items() if ".attn1." in name}
    assert text and set(text.values()) == {1}
    assert image and set(image.values()) == {SAMPLER.steps}
    monkeypatch.setattr(loop, "projected_once", lambda unet, hooks: nullcontext())
    with counted(pipeline.unet) as calls:
        assert np.array_equal(pictures(pipeline), once)
    assert {count for name, count in calls.items() if ".attn2." in name} == {SAMPLER.steps}


def test_modules_are_left_as_they_were():
    pipeline = tiny.build()

    def stopped():
        with projected_once(pipeline.unet, ()):
            assert any("forward" in module.__dict__ for module in pipeline.unet.modules())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not any("forward" in module.__dict__ for module in pipeline.unet.modules())


class Turning(Hook):
    """Another text at every step."""

    def states(self, step, branches):
        return {name: text * (1 + 0.1 * step.index) for name, text in branches.items()}


class Entering(Hook):
    @contextmanager
    def around(self, unet, step):
        yield


@pytest.mark.parametrize("hook", [Turning(), Entering()])
def test_hooks_that_change_texts_or_enter_the_network_are_followed(hook, monkeypatch):
    pipeline = tiny.build().with_hook(hook)
    with counted(pipeline.unet) as calls:
        found = pictures(pipeline)
    assert {count for name, count in calls.items() if ".attn2." in name} == {SAMPLER.steps}
    monkeypatch.setattr(loop, "projected_once", lambda unet, hooks: nullcontext())
    assert np.array_equal(pictures(pipeline), found)


def test_another_tensor_or_a_changed_one_is_projected_again():
    calls = []
    kept = Kept(lambda given: calls.append(1) or given * 2)
    texts = torch.arange(12.0).view(3, 4)
    assert kept(texts) is kept(texts) and kept(texts[:, :]) is kept(texts) and len(calls) == 1
    assert torch.equal(kept(texts[:2]), texts[:2] * 2) and len(calls) == 2
    assert torch.equal(kept(texts.clone()), texts * 2) and len(calls) == 3
    kept(texts)
    texts += 1
    assert torch.equal(kept(texts), texts * 2) and len(calls) == 5
