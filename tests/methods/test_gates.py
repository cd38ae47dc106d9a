"""Gates and side branches at sampling: SPM against weighted tensors, one prompt at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from palimpsest.methods import spm
from palimpsest.methods.contract import Artifact, TrainingData
from palimpsest.params import Sampler
from palimpsest.sampling.loop import Request, generate
from palimpsest.sampling.pipeline import Conditioning, Step
from tests import tiny
from tests.methods.branches import layer_names, text, with_branches
from tests.methods.erasing import TARGET

REQUESTS = [Request("a", "a robot with gears", 5), Request("b", "the house", 6), Request("c", "blue lamp", 7)]
SAMPLER = Sampler(name="ddim", steps=3, guidance=4.0)


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def images(pipeline, requests=REQUESTS):
    return np.stack([g.image for g in generate(pipeline, requests, SAMPLER, 16)]).astype(int)


def official_score(pipeline, prompt, word):
    """max of the cosine of flattened embeddings and the share of the word's tokens."""
    cosine = torch.nn.functional.cosine_similarity(
        text(pipeline, prompt).flatten(), text(pipeline, word).flatten(), dim=0
    )
    tokens, wanted = (
        set(pipeline.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (prompt, word)
    )
    return max(float(cosine), len(tokens & wanted) / len(wanted))


def trained(pipeline, mode="per_keyword", rank=2):
    """An artifact with branches too large to overlook."""
    settings = spm.Settings(adapter_mode=mode, rank=rank, iterations=1, steps=2, anchor_count=1)
    artifact = spm.fit(pipeline, TARGET, TrainingData(), settings, 5)
    generator = torch.Generator().manual_seed(3)
    tensors = {
        n: t if n.endswith("down") else 0.3 * torch.randn(t.shape, generator=generator)
        for n, t in artifact.tensors.items()
    }
    return Artifact(tensors, artifact.meta), settings


@pytest.mark.parametrize("mode", ["per_keyword", "joint_list", "joint_prompt"])
def test_gates_are_the_largest_likeness_of_a_concept(pipeline, mode):
    artifact, settings = trained(pipeline, mode)
    hook = spm.apply(pipeline, artifact, TARGET, settings).hooks[0]
    prompts = [request.prompt for request in REQUESTS]
    given = hook.gates(prompts, torch.cat([text(pipeline, p) for p in prompts]))
    scores = torch.tensor([[official_score(pipeline, p, w) for w in TARGET.keywords] for p in prompts])
    expected = scores if mode == "per_keyword" else scores.amax(1, keepdim=True)
    assert torch.allclose(given, expected, atol=1e-6)
    assert len(set(given.flatten().tolist())) > 2


def test_parts_of_the_likeness(pipeline):
    artifact, settings = trained(pipeline, "joint_list")
    embeds = torch.cat([text(pipeline, request.prompt) for request in REQUESTS])
    prompts = [request.prompt for request in REQUESTS]
    parts = {
        kind: spm.apply(pipeline, artifact, TARGET, settings.model_copy(update={"matching": kind}))
        .hooks[0]
        .gates(prompts, embeds)
        for kind in ("clipcos", "tokenuni", "clipcos_tokenuni")
    }
    assert torch.equal(parts["clipcos_tokenuni"], torch.maximum(parts["clipcos"], parts["tokenuni"]))
    assert parts["tokenuni"][0] == 1  # the keyword "gears" is one token, and the prompt has it
    assert parts["tokenuni"][1] < 1
    assert not torch.equal(parts["clipcos"], parts["clipcos_tokenuni"])


@pytest.mark.first_case
@pytest.mark.parametrize("gate", ["official_sq", "paper_linear"])
@pytest.mark.parametrize("mode", ["per_keyword", "joint_list"])
def test_gated_predictions_in_one_batch_equal_weighted_tensors_one_by_one(pipeline, gate, mode):
    artifact, settings = trained(pipeline, mode)
    used = spm.apply(pipeline, artifact, TARGET, settings.model_copy(update={"gate": gate}))
    prompts = tuple(request.prompt for request in REQUESTS)
    cond = torch.cat([text(pipeline, p) for p in prompts])
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    branches = {"uncond": text(pipeline, "").expand(3, -1, -1), "cond": cond}
    hook = used.hooks[0].begin(Conditioning(prompts, branches, latents))
    step = Step(0, 3, torch.tensor(500), ("uncond", "cond"))
    with torch.no_grad(), hook.around(used.unet, step):
        given = used.unet(
            latents.repeat(2, 1, 1, 1), step.timestep, torch.cat(list(branches.values()))
        ).sample
    groups = [[w] for w in TARGET.keywords] if mode == "per_keyword" else [list(TARGET.keywords)]
    for row, prompt in enumerate(prompts):
        gates = [max(official_score(pipeline, prompt, w) for w in group) for group in groups]
        if gate == "official_sq":  # every tensor of every set times its gate, then the sum over the sets
            weights = torch.tensor(gates)
            parts = {
                n: (t * weights.view(-1, *[1] * (t.ndim - 1))).sum(0) for n, t in artifact.tensors.items()
            }
        else:  # one wide set of branches
            parts = {
                n: torch.cat(list(t), 0)
                if n.endswith("down")
                else torch.cat([g * part for g, part in zip(gates, t, strict=True)], 1)
                for n, t in artifact.tensors.items()
            }
        unet = with_branches(pipeline.unet, parts, settings.alpha / settings.rank)
        for place, branch in enumerate(("uncond", "cond")):
            with torch.no_grad():
                alone = unet(latents[row][None], step.timestep, branches[branch][row][None]).sample[0]
                plain = pipeline.unet(latents[row][None], step.timestep, branches[branch][row][None]).sample[
                    0
                ]
            assert torch.allclose(given[3 * place + row], alone, atol=1e-5)
            assert float((alone - plain).abs().max()) > 1e-2


def test_the_unet_is_left_as_it_was(pipeline):
    before = images(pipeline)
    artifact, settings = trained(pipeline)
    used = spm.apply(pipeline, artifact, TARGET, settings)
    assert used.unet is pipeline.unet
    assert np.abs(images(used) - before).max() > 5
    assert np.array_equal(images(pipeline), before)
    assert not any(module._forward_hooks for module in pipeline.unet.modules())


def test_without_a_gate_branches_go_into_the_weights(pipeline):
    artifact, settings = trained(pipeline)
    used = spm.apply(pipeline, artifact, TARGET, settings.model_copy(update={"gate": "none"}))
    assert not used.hooks
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    wide = {n: torch.cat(list(t), 0 if n.endswith("down") else 1) for n, t in artifact.tensors.items()}
    unet = with_branches(pipeline.unet, wide, settings.alpha / settings.rank)
    with torch.no_grad():
        given, expected = (u(latents, 500, text(pipeline, "the house")).sample for u in (used.unet, unet))
    assert torch.allclose(given, expected, atol=1e-5)
    changed = {
        n for n, t in used.unet.state_dict().items() if not torch.equal(t, pipeline.unet.state_dict()[n])
    }
    assert changed == {f"{name}.weight" for name in layer_names(pipeline.unet)}


def test_strength_scales_the_branches(pipeline):
    artifact, settings = trained(pipeline)
    linear = settings.model_copy(update={"gate": "paper_linear", "strength": 0.5})
    halved = Artifact(
        {n: t / 2 if n.endswith("up") else t for n, t in artifact.tensors.items()}, artifact.meta
    )
    expected = images(spm.apply(pipeline, halved, TARGET, linear.model_copy(update={"strength": 1.0})))
    assert np.abs(images(spm.apply(pipeline, artifact, TARGET, linear)) - expected).max() <= 1
    off = settings.model_copy(update={"strength": 0.0})
    assert spm.apply(pipeline, artifact, TARGET, off) is pipeline


@pytest.mark.slow
def test_branches_of_another_checkpoint_are_refused(pipeline):
    artifact, settings = trained(pipeline)
    cut = {n: t[..., :5] for n, t in artifact.tensors.items()}
    with pytest.raises(ValueError, match="was fitted on another checkpoint"):
        images(spm.apply(pipeline, Artifact(cut, artifact.meta), TARGET, settings))
