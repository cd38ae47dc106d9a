"""What every erasure method has to keep, whatever it does. Methods are found, so a new one is held to this
page at once.

A method whose settings name files (INFO.files) is given small ones by `contract_settings(folder, requests, images)`
of its own tests, tests/methods/test_<name>.py: it writes them and returns the settings that name them. requests and
images: of the base, for files that have to fit them.
"""

from __future__ import annotations

import atexit
import importlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError

from palimpsest import store
from palimpsest.methods import registry
from palimpsest.methods.contract import (
    Artifact,
    Fidelity,
    ImageSet,
    Need,
    Scope,
    Stage,
    Target,
    ThemeTarget,
    TrainingData,
)
from palimpsest.params import Sampler
from palimpsest.sampling.loop import Outcome, Request, generate
from tests import tiny

NAMES = registry.names()
FILES = registry.settings_files("methods")
SOURCES = [name for name in NAMES if hasattr(registry.get(name), "produce")]
EDITORS = [name for name in NAMES if name not in SOURCES]


def runs_of(names):
    """Every preset; those that an experiment does not run by default are left to the slow tests."""
    return [
        pytest.param(
            name, preset, marks=() if preset in (FILES[name].run or [preset])[:1] else pytest.mark.slow
        )
        for name in names
        for preset in FILES[name].presets
    ]


RUNS, SOURCE_RUNS = runs_of(EDITORS), runs_of(SOURCES)
# Fits are cut short and made strong: two updates of a random model have to change pixels.
SHORT = {"iterations": 2, "steps": 4, "batch_size": 2, "learning_rate": 0.02}
SAMPLER = Sampler(name="ddim", steps=3, guidance=4.0)
REQUESTS = [Request("a", "a robot with gears", 5), Request("b", "the house", 6), Request("c", "gears", 7)]
TARGET = Target(
    (ThemeTarget("uncased", ("gears", "gear"), "a robot"), ThemeTarget("breakage", ("crack",), "a house")),
    retain=("a tree",),
)


@cache
def pipeline():
    return tiny.build()


def data(info):
    generator, sets = np.random.default_rng(0), []
    for role in info.needs:
        for theme in TARGET.themes:
            images = generator.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
            prompts = (theme.safe, f"red {theme.safe}", f"{theme.safe} on a tree")
            masks, words = None, ()
            if role == "masked_images":
                masks = generator.random((3, 16, 16)) < 0.5
                words = tuple(theme.keywords[i % len(theme.keywords)] for i in range(3))
            sets.append(ImageSet(theme.name, role, images, prompts, masks, words))
    return TrainingData(tuple(sets))


@cache
def files(name):
    """The settings that name small files which the method's own tests wrote."""
    if not registry.get(name).INFO.files:
        return {}
    folder = Path(tempfile.mkdtemp(prefix=f"contract-{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tests = importlib.import_module(f"tests.methods.test_{name}")
    return tests.contract_settings(folder, REQUESTS, base_images())


def short(name, preset, **changes):
    known = registry.get(name).Settings.model_fields
    chosen = {key: value for key, value in {**SHORT, **files(name), **changes}.items() if key in known}
    return registry.settings(name, preset, chosen, FILES)


@cache
def fitted(name, preset, seed=0):
    method = registry.get(name)
    return method.fit(pipeline(), TARGET, data(method.INFO), short(name, preset), seed)


def images(used, requests=REQUESTS, sampler=SAMPLER):
    return [g.image for g in generate(used, requests, sampler, tiny.RESOLUTION)]


@cache
def base_images():
    return images(pipeline())


def erased(name, preset, artifact=None, **changes):
    artifact = fitted(name, preset) if artifact is None else artifact
    # a guidance that begins late would change nothing in three steps
    chosen = short(name, preset, **{"warmup": 0, **changes})
    return registry.get(name).apply(pipeline(), artifact, TARGET, chosen)


@cache
def erased_images(name, preset):
    return images(erased(name, preset))


def same(a, b, tolerance=0):
    def one(x, y):
        if x is None or y is None:
            return x is y
        return int(np.abs(x.astype(int) - y.astype(int)).max()) <= tolerance

    return all(one(x, y) for x, y in zip(a, b, strict=True))


def has_strength(name):
    return "strength" in registry.get(name).Settings.model_fields


@pytest.mark.parametrize("name", NAMES)
def test_metadata_is_complete(name):
    info = registry.get(name).INFO
    assert info.name == name
    for field in fields(info):
        if field.type == "str":
            assert getattr(info, field.name).strip(), f"INFO.{field.name} is empty"
    assert info.stage in get_args(Stage)
    assert info.fidelity in get_args(Fidelity)
    assert set(info.needs) <= set(get_args(Need))
    assert info.fits or not info.needs
    assert info.paper.startswith("https://")
    assert info.code.startswith("https://")
    assert info.bibtex.startswith("@")
    assert info.bibtex.count("{") == info.bibtex.count("}")
    assert set(info.architectures) <= {"sd1", "sd2", "sdxl"}
    assert info.architectures
    assert set(info.not_for) == {"sd1", "sd2", "sdxl"} - set(info.architectures)
    assert all(len(reason) > 20 for reason in info.not_for.values())
    assert info.scope in get_args(Scope)
    assert set(info.files) <= set(registry.get(name).Settings.model_fields)
    assert set(info.folders) <= set(info.files)


def test_importing_methods_does_not_load_torch():
    code = (
        "import sys; from palimpsest.methods import registry; [registry.get(n) for n in registry.names()];"
        "registry.settings_files('methods');"
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_explained_and_unknown_ones_are_refused(name):
    settings = registry.get(name).Settings
    assert issubclass(settings, BaseModel)
    assert not [key for key, field in settings.model_fields.items() if not field.description]
    with pytest.raises(ValidationError, match="no_such_setting"):
        settings.model_validate({"no_such_setting": 1})


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_file_runs_and_the_documentation_has_a_page(name):
    assert FILES[name].method == name
    assert FILES[name].run or registry.get(name).INFO.files, "run: [] is for what needs files of the user"
    assert Path(f"docs/methods/{name}.md").is_file()
    for preset in FILES[name].presets:
        assert registry.settings(name, preset, {}, FILES) is not None


@pytest.mark.parametrize(("name", "preset"), RUNS)
def test_fitting_follows_the_seed_and_leaves_the_base_alone(name, preset):
    before = {k: v.clone() for k, v in pipeline().unet.state_dict().items()}
    first = fitted(name, preset)
    method = registry.get(name)
    again = method.fit(pipeline(), TARGET, data(method.INFO), short(name, preset), 0)
    assert list(first.tensors) == list(again.tensors)
    assert all(torch.equal(first.tensors[key], again.tensors[key]) for key in first.tensors)
    assert first.meta == again.meta
    assert bool(first.tensors) == method.INFO.fits
    assert first.meta["unet_evaluations"] >= 0
    assert "losses" in first.meta
    assert all(torch.equal(value, before[key]) for key, value in pipeline().unet.state_dict().items())


@pytest.mark.parametrize(("name", "preset"), RUNS)
def test_applying_changes_images_but_not_those_of_the_base(name, preset):
    before = base_images()
    first = erased_images(name, preset)
    assert same(images(erased(name, preset)), first)
    assert same(images(pipeline()), before)
    assert same(first, before) == (registry.get(name).INFO.stage == "none")


@pytest.mark.parametrize(("name", "preset"), [run for run in RUNS if has_strength(run.values[0])])
def test_strength_0_is_the_base_bit_for_bit(name, preset):
    assert same(images(erased(name, preset, strength=0.0)), base_images())


@pytest.mark.parametrize(("name", "preset"), RUNS)
def test_an_artifact_survives_the_store(name, preset, tmp_path):
    artifact = fitted(name, preset)
    path = tmp_path / "artifact.safetensors"
    store.write_tensors(artifact.tensors, path, {"fit": dict(artifact.meta)})
    tensors, meta = store.read_tensors(path)
    loaded = Artifact(tensors, meta["fit"])
    assert same(images(erased(name, preset, loaded)), erased_images(name, preset))
    store.write_tensors(loaded.tensors, tmp_path / "again.safetensors", {"fit": loaded.meta})
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", [n for n in EDITORS if registry.get(n).INFO.scope == "fixed"])
def test_what_cannot_be_aimed_gives_the_same_images_for_every_target(name):
    preset = next(iter(FILES[name].presets))
    other = Target((ThemeTarget("glitch", ("static",), "a lamp"),))
    used = registry.get(name).apply(pipeline(), fitted(name, preset), other, short(name, preset))
    assert same(images(used), erased_images(name, preset))
    assert not registry.get(name).INFO.needs


def made(name, preset, requests=REQUESTS):
    method = registry.get(name)
    return list(method.produce(requests, short(name, preset), tiny.RESOLUTION, "suite"))


@pytest.mark.parametrize(("name", "preset"), SOURCE_RUNS)
def test_a_source_answers_every_request_in_order_whatever_else_is_asked(name, preset):
    info = registry.get(name).INFO
    assert (info.stage, info.scope, info.fits) == ("external", "fixed", False)
    whole = made(name, preset)
    assert [(g.image_id, g.prompt, g.seed) for g in whole] == [
        (r.image_id, r.prompt, r.seed) for r in REQUESTS
    ]
    side = tiny.RESOLUTION
    shapes = {(g.image.shape, g.image.dtype.name) for g in whole if g.image is not None}
    assert shapes == {((side, side, 3), "uint8")}
    assert all(g.decision in get_args(Outcome) and (g.image is not None or g.reason) for g in whole)
    for again in (made(name, preset), made(name, preset, REQUESTS[::-1])[::-1]):
        assert same([g.image for g in again], [g.image for g in whole])
    parts = made(name, preset, REQUESTS[:1]) + made(name, preset, REQUESTS[1:])
    assert same([g.image for g in parts], [g.image for g in whole])


@pytest.mark.parametrize("name", EDITORS)
def test_an_image_does_not_depend_on_its_batch_order_or_shard(name):
    preset = FILES[name].run[0]
    used, whole = erased(name, preset), erased_images(name, preset)
    assert same(images(used, REQUESTS[::-1], SAMPLER.model_copy(update={"batch": 2}))[::-1], whole, 1)
    assert same(images(used, REQUESTS[:1]) + images(used, REQUESTS[1:]), whole, 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_list_of_methods_names_it_with_its_fidelity(name):
    info = registry.get(name).INFO
    (line,) = [
        line
        for line in Path("docs/methods/README.md").read_text(encoding="utf-8").splitlines()
        if f"]({name}.md)" in line
    ]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == info.stage
    assert cells[-1] == info.fidelity
