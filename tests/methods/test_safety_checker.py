"""The filter on finished images, against the decisions of diffusers' own class and against its rule written out."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from palimpsest.methods import _safety_checker, safety_checker
from palimpsest.methods.contract import Artifact
from palimpsest.params import Sampler
from palimpsest.sampling.load import MissingModel
from palimpsest.sampling.loop import Request, generate
from palimpsest.sampling.pipeline import Hook
from tests import tiny
from tests.methods.erasing import TARGET

REQUESTS = [Request(str(i), prompt, i) for i, prompt in enumerate(["a robot", "the house", "gears", "crack"])]
SAMPLER = Sampler(name="ddim", steps=3, guidance=4.0)
FAR = 2.0  # no cosine is beyond it


def build(folder, seed=0, cares=(FAR,) * 3, thresholds=(FAR,) * 17):
    """A tiny checker with random weights: 8 x 8 patches of 16 x 16 pixels, width 32."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 8,
        "projection_dim": 24,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=24))
        with torch.no_grad():
            for weights in (model.concept_embeds, model.special_care_embeds, model.visual_projection.weight):
                weights.normal_()
            model.special_care_embeds_weights.copy_(torch.tensor(cares))
            model.concept_embeds_weights.copy_(torch.tensor(thresholds))
    model.save_pretrained(folder, safe_serialization=True)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(
        folder
    )
    return folder


def between(values):
    """A threshold that some of the values exceed, and not by a hair."""
    ordered = np.sort(values)
    gaps = ordered[1:] - ordered[:-1]
    place = int(gaps.argmax())
    return float((ordered[place] + ordered[place + 1]) / 2)


def contract_settings(folder, requests, images):
    """A tiny checker that flags some of the base's images."""
    loaded = _safety_checker.load(build(folder / "loose"), "checker")
    _, cosines = loaded.cosines(np.stack(images))
    thresholds = [between(cosines[:, 0]), *([FAR] * 16)]
    return {
        "checker": str(build(folder / "checker", thresholds=thresholds)),
        "checker_revision": None,
        "adjustment": 0.0,
        "strength": 1.0,
    }


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


@pytest.fixture(scope="module")
def pictures():
    """Smooth random pictures, which random weights tell apart better than noise."""
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (24, 3, 3, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(i).resize((16, 16), Image.Resampling.BICUBIC)) for i in small]
    )


@pytest.fixture(scope="module")
def strict(tmp_path_factory, pictures):
    """A checker that uses everything: three special-care concepts and five concepts near the middle of the pictures' cosines."""
    folder = tmp_path_factory.mktemp("checkers")
    special, cosines = _safety_checker.load(build(folder / "loose"), "checker").cosines(pictures)
    thresholds = np.full(17, FAR)
    thresholds[:5] = np.quantile(cosines[:, :5], 0.9, axis=0)
    return build(
        folder / "strict", cares=np.quantile(special, 0.8, axis=0).tolist(), thresholds=thresholds.tolist()
    )


def applied(pipeline, folder, **settings):
    return safety_checker.apply(
        pipeline, Artifact(), TARGET, safety_checker.Settings(checker=str(folder), **settings)
    )


def flagged(pipeline, folder, pictures, **settings):
    hook = applied(pipeline, folder, **settings).hooks[-1]
    return hook.withhold(torch.from_numpy(pictures), [""] * len(pictures))


def official(folder, pictures):
    """The decisions of diffusers' own loop."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    model = StableDiffusionSafetyChecker.from_pretrained(folder).eval()
    pixels = CLIPImageProcessor.from_pretrained(folder)(
        images=[Image.fromarray(image) for image in pictures], return_tensors="pt"
    ).pixel_values
    return model(pixels, [np.ones((1, 1, 3)) for _ in pictures])[1]


def test_decisions_are_those_of_the_official_class(pipeline, strict, pictures):
    found = flagged(pipeline, strict, pictures)
    expected = official(strict, pictures)
    assert [i in found for i in range(len(pictures))] == expected
    assert 3 <= sum(expected) <= 21


def test_the_rule_is_the_official_one_written_out(pictures, strict):
    loaded = _safety_checker.load(strict, "checker")
    special, cosines = loaded.cosines(pictures)
    limits = loaded.thresholds
    cared = 0
    over = _safety_checker.excess(special, cosines, limits)
    for row in range(len(pictures)):
        raised = 0.0
        for place in range(3):
            if round(float(special[row, place]) - float(limits.special[place]) + raised, 3) > 0:
                raised = 0.01
        cared += raised > 0
        expected = [round(float(cosines[row, k]) - float(limits.concepts[k]) + raised, 3) for k in range(17)]
        assert over[row] == pytest.approx(expected, abs=1.1e-3)
        assert over[row] == pytest.approx(expected, abs=2e-6) or np.abs(over[row] - expected).max() < 1.1e-3
    assert 0 < cared < len(pictures)
    assert over.dtype == np.float32


def test_a_special_care_concept_alone_flags_nothing(pipeline, tmp_path, pictures):
    assert flagged(pipeline, build(tmp_path / "a", cares=(-1.0,) * 3), pictures) == {}


@pytest.mark.parametrize("knob", ["strength", "adjustment"])
def test_more_of_a_knob_flags_more(pipeline, strict, pictures, knob):
    values = {
        "strength": (0.0, 0.5, 0.98, 0.995, 1.0, 1.005, 1.02, 4.0),
        "adjustment": (-2.0, -0.01, -0.003, 0.0, 0.003, 0.01, 3.0),
    }
    sets = []
    for value in values[knob]:
        used = applied(pipeline, strict, **{knob: value})
        hooks = used.hooks
        sets.append(set(hooks[-1].withhold(torch.from_numpy(pictures), []) if hooks else ()))
    assert all(a <= b for a, b in pairwise(sets))
    assert sets[0] == set() and sets[-1] == set(range(len(pictures)))
    assert len({len(s) for s in sets}) >= 4


def test_withheld_images_are_rows_without_an_image_and_the_others_are_untouched(pipeline, tmp_path):
    base = [g.image for g in generate(pipeline, REQUESTS, SAMPLER, 16)]
    settings = contract_settings(tmp_path, REQUESTS, base)
    used = safety_checker.apply(pipeline, Artifact(), TARGET, safety_checker.Settings(**settings))
    made = list(generate(used, REQUESTS, SAMPLER, 16))
    withheld = [g for g in made if g.image is None]
    assert 0 < len(withheld) < len(REQUESTS)
    assert {g.decision for g in withheld} == {"blocked_image"}
    assert all(g.reason.startswith("concept 1 +0.") for g in withheld)
    for given, image in zip(made, base, strict=True):
        if given.image is not None:
            assert given.decision == "generated" and np.array_equal(given.image, image)


def test_strength_0_is_the_pipeline_itself(pipeline):
    assert applied(pipeline, "nobody/nothing", strength=0.0) is pipeline
    with pytest.raises(ValidationError):
        safety_checker.Settings(checker="x", strength=-0.1)


class Whitened(Hook):
    def edit(self, images, prompts):
        return torch.full_like(images, 255), dict.fromkeys(range(len(images)), "white")


def test_it_looks_at_what_other_hooks_made_of_the_image(pipeline, tmp_path):
    white = np.full((1, 16, 16, 3), 255, np.uint8)
    loaded = _safety_checker.load(build(tmp_path / "loose"), "checker")
    limit = float(loaded.cosines(white)[1][0, 0]) - 0.002
    folder = build(tmp_path / "white", thresholds=[limit, *([FAR] * 16)])
    shown = applied(pipeline, folder).with_hook(Whitened())
    assert {g.decision for g in generate(shown, REQUESTS, SAMPLER, 16)} == {"blocked_image"}


def test_names_of_concepts_stand_in_the_reason(pipeline, tmp_path, pictures):
    folder = build(tmp_path / "named", thresholds=[FAR, -1.0, *([FAR] * 15)])
    config = json.loads((folder / "config.json").read_text())
    names = [f"word {i}" for i in range(17)]
    (folder / "config.json").write_text(json.dumps({**config, "concept_names": names}))
    reasons = flagged(pipeline, folder, pictures[:2])
    assert all(reason.startswith("word 1 +") and "," not in reason for reason in reasons.values())


def test_weights_in_the_layout_of_older_libraries_are_the_same(pipeline, strict, pictures, tmp_path):
    old = shutil.copytree(strict, tmp_path / "old")
    stored = {}
    for name, tensor in load_file(old / "model.safetensors").items():
        plain = name.replace("vision_model.vision_model.", "vision_model.")
        stored[
            plain.replace("vision_model.", "vision_model.vision_model.", 1)
            if plain.startswith("vision")
            else plain
        ] = tensor
    stored["vision_model.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(stored, old / "model.safetensors", metadata={"format": "pt"})
    assert flagged(pipeline, old, pictures) == flagged(pipeline, strict, pictures)


def test_a_whole_stable_diffusion_folder_will_do(pipeline, strict, pictures, tmp_path):
    shutil.copytree(strict, tmp_path / "sd/safety_checker")
    (tmp_path / "sd/feature_extractor").mkdir()
    (tmp_path / "sd/safety_checker/preprocessor_config.json").rename(
        tmp_path / "sd/feature_extractor/preprocessor_config.json"
    )
    assert flagged(pipeline, tmp_path / "sd", pictures) == flagged(pipeline, strict, pictures)


def test_weights_that_do_not_fit_are_refused_instead_of_filled_up(pipeline, strict, tmp_path):
    bad = shutil.copytree(strict, tmp_path / "bad")
    stored = load_file(bad / "model.safetensors")
    stored.pop("concept_embeds")
    stored["special_care_embeds"] = stored["special_care_embeds"][:2].clone()
    save_file(stored, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"checker: .*1 tensors missing \['concept_embeds'\].*special_care_embeds of shape"
    ):
        applied(pipeline, bad)


def test_what_is_missing_is_named(pipeline, strict, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(MissingModel, match=r"checker: 'nobody/nothing'.*hf download nobody/nothing"):
        applied(pipeline, "nobody/nothing")
    pickled = shutil.copytree(strict, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors missing.*\.bin weights are refused"):
        applied(pipeline, pickled)
