"""A second tree of modules around the same tensors: what is done to one is not done to the other."""

from __future__ import annotations

from types import MethodType

import pytest
import torch

from palimpsest.sampling.pipeline import overlay
from palimpsest.sampling.twins import twin
from tests import tiny


@pytest.fixture
def unet():
    return tiny.build().unet


def predicted(unet):
    latents = torch.linspace(-1, 1, 2 * 4 * 8 * 8).view(2, 4, 8, 8)
    texts = torch.linspace(-1, 1, 2 * 77 * 32).view(2, 77, 32)
    with torch.no_grad():
        return unet(latents, 500, texts).sample


def test_it_has_the_same_tensors_in_modules_of_its_own(unet):
    again = twin(unet)
    assert type(again) is type(unet) and again.config is unet.config and again.training == unet.training
    mine, theirs = dict(unet.named_modules()), dict(again.named_modules())
    assert list(mine) == list(theirs) and all(mine[name] is not theirs[name] for name in mine)
    assert all(a is b for a, b in zip(unet.parameters(), again.parameters(), strict=True))
    assert torch.equal(predicted(again), predicted(unet))


def test_hooks_attributes_and_replaced_tensors_of_one_are_not_the_others(unet):
    before = predicted(unet)
    weight = unet.conv_in.weight
    again = twin(unet, {id(weight): torch.nn.Parameter(2 * weight.detach(), requires_grad=False)})
    again.mid_block.register_forward_hook(lambda module, inputs, output: output + 1)
    again.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_out[0] = torch.nn.Identity()
    again.mid_block.resnets = torch.nn.ModuleList(list(again.mid_block.resnets))
    again.requires_grad_(False).train()
    assert not torch.equal(predicted(again), before)
    assert torch.equal(predicted(unet), before) and not unet.training
    assert unet.conv_in.weight is weight and not unet.mid_block._forward_hooks


def test_a_tensor_and_a_module_in_two_places_are_one_in_the_twin_as_well():
    inner = torch.nn.Linear(3, 3)
    both = torch.nn.ModuleDict({"a": inner, "b": inner, "c": torch.nn.Linear(3, 3)})
    both["c"].weight = inner.weight
    new = torch.nn.Parameter(torch.zeros(3, 3))
    again = twin(both, {id(inner.weight): new})
    assert again["a"] is again["b"] and again["a"] is not inner
    assert again["a"].weight is again["c"].weight is new


def test_a_method_that_was_put_into_a_module_is_of_the_twin(unet):
    def size(self):
        return len(list(self.modules()))

    unet.mid_block.size = MethodType(size, unet.mid_block)
    again = twin(unet)
    again.mid_block.resnets = torch.nn.ModuleList()
    assert again.mid_block.size() < unet.mid_block.size()


def test_an_overlay_holds_given_values_in_its_own_dtype_and_copies_them(unet):
    name = "conv_out.bias"
    value = torch.full_like(unet.conv_out.bias, 0.5, dtype=torch.float64)
    again = overlay(unet, {name: value})
    value.zero_()
    assert again.conv_out.bias.dtype == torch.float32 and bool((again.conv_out.bias == 0.5).all())
    assert isinstance(again.conv_out.bias, torch.nn.Parameter) and not again.conv_out.bias.requires_grad
    assert again.conv_out.weight is unet.conv_out.weight
    assert not bool((unet.conv_out.bias == 0.5).any())
