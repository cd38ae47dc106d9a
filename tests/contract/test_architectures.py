"""Every method on Stable Diffusion v2 and XL: it is fitted and makes an image there, or says why it is not defined for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from palimpsest.methods import registry
from palimpsest.params import Model, Sampler
from palimpsest.sampling.load import load_pipeline
from palimpsest.sampling.loop import generate
from tests import layouts
from tests.contract import test_methods as contract

KINDS = ("sd2", "sdxl")
# Slow: on v2, fits that tests/methods/test_velocity.py holds to formulas or that differ by nothing but widths; on XL, the longest one,
# whose parts are those of ESD and of SelfD.
SLOW = {(name, "sd2") for name in ("ac", "ace", "erasediff", "esd", "rece", "salun", "selfd", "spm", "uce")}
SLOW |= {("metaun", kind) for kind in KINDS}
CASES = [
    pytest.param(name, kind, marks=pytest.mark.slow if (name, kind) in SLOW else ())
    for name in contract.EDITORS
    for kind in KINDS
]
SAMPLER = Sampler(name="ddim", steps=2, guidance=4.0)
SHORT = {
    "iterations": 1,
    "epochs": 1,
    "scheduler": "ddim",
    "warmup": 0,
    "warmup_fraction": 0.0,
    "steps": 2,
    "images_per_set": 1,
    "mask_images": 2,
    "inner_steps": 1,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("layouts")
    return {"sd2": layouts.sd2(root / "sd2"), "sdxl": layouts.sdxl(root / "sdxl")}


@cache
def loaded(folder, kind):
    return load_pipeline(Model(path=str(folder), resolution=16, architecture=kind))


@cache
def base_images(folder, kind):
    return images(loaded(folder, kind))


def images(used):
    made = generate(used, contract.REQUESTS[:2], SAMPLER, 16)
    return [g.image for g in made]


def settings_of(name):
    known = registry.get(name).Settings.model_fields
    chosen = {key: value for key, value in SHORT.items() if key in known}
    return contract.short(name, next(iter(contract.FILES[name].run)), **chosen)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_it_erases_there_or_says_why_not(folders, name, kind):
    method, base = registry.get(name), loaded(folders[kind], kind)
    if kind not in method.INFO.architectures:
        assert method.INFO.not_for[kind]
        return
    settings, weights = settings_of(name), {n: t.clone() for n, t in base.unet.state_dict().items()}
    before = base_images(folders[kind], kind)
    artifact = method.fit(base, contract.TARGET, contract.data(method.INFO), settings, 0)
    assert bool(artifact.tensors) == method.INFO.fits
    assert all(torch.isfinite(tensor).all() for tensor in artifact.tensors.values())
    used = method.apply(base, artifact, contract.TARGET, settings)
    after = images(used)
    assert contract.same(after, before) == (method.INFO.stage == "none")
    assert all(image is None or image.shape == (16, 16, 3) for image in after)
    assert contract.same(images(base), before)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in base.unet.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_tiny_checkpoints_can_fail_a_test(folders, kind):
    first, second = base_images(folders[kind], kind)
    assert first.std() > 5
    assert np.abs(first.astype(int) - second).max() > 20


def test_the_guide_lists_what_runs_where():
    """docs/architectures.md has one row per method, as the registry says."""
    lines = Path("docs/architectures.md").read_text(encoding="utf-8").splitlines()
    rows = {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| [") and "](methods/" in line:
            rows[cells[0].partition("](methods/")[2].removesuffix(".md)")] = cells[1:4]
    expected = {
        name: ["yes" if kind in registry.get(name).INFO.architectures else "no" for kind in ("sd1", *KINDS)]
        for name in contract.NAMES
    }
    assert rows == expected
    reasons = {line for name in contract.NAMES for line in registry.get(name).INFO.not_for.values()}
    text = " ".join(" ".join(lines).split())
    assert all(reason in text for reason in reasons)
