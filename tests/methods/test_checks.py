"""Input that no method can work with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from palimpsest.methods import checks
from palimpsest.methods.contract import Artifact, Target, ThemeTarget
from tests import tiny


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def target(*words, safe="a robot"):
    return Target((ThemeTarget("uncased", words, safe),))


def test_good_input_passes(pipeline):
    checks.check_target(pipeline, target("gears", "gear on a robot"))
    checks.check_model(pipeline)
    checks.check_artifact(Artifact({"w": torch.ones(2), "index": torch.tensor([1])}, {"losses": [0.5]}))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (target(), "theme 'uncased' has no keywords"),
        (target("gears", " "), "the keyword ' ' has no tokens"),
        (target("gears", "A  Robot"), "is also the surrogate"),
    ],
)
def test_targets_that_mean_nothing(pipeline, found, words):
    with pytest.raises(ValueError, match=words):
        checks.check_target(pipeline, found)


def test_parts_of_two_models(pipeline):
    from transformers import CLIPTextConfig, CLIPTextModel

    other = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=100, hidden_size=48, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
        )
    )
    with pytest.raises(ValueError, match="takes texts 32 wide, the text encoder gives 48"):
        checks.check_model(replace(pipeline, text_encoder=other))


def test_results_that_are_not_finite_are_not_kept():
    with pytest.raises(FloatingPointError, match=r"1 of 2 fitted tensors are not finite \(first: b\)"):
        checks.check_artifact(Artifact({"a": torch.ones(1), "b": torch.tensor([float("nan")])}))
    with pytest.raises(FloatingPointError, match="a loss of the fit"):
        checks.check_artifact(Artifact({}, {"losses": [1.0, float("inf")]}))
