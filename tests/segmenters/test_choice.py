"""Which segmenter an experiment has, what is said when it cannot work, and the cells that it leads to."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from palimpsest import params, store, weights
from palimpsest.cells import Cell
from palimpsest.job import Job
from palimpsest.methods.contract import TrainingData
from palimpsest.needs import Needs
from palimpsest.plan.build import Plan, build
from palimpsest.segmenters import contract, registry
from palimpsest.steps import erase, masks

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "experiments/paper.yaml"
METHODS = {"sd": ["default"], "mace": ["t14_object"]}
SCENES = {"kind": "scenes", "path": "data/micro/scenes.parquet"}


def settings(overlay=None, *files):
    base = params.load(ROOT / "params.yaml", *files).model_dump(mode="json")
    base.pop("methods")
    base["variants"]["only"] = {}
    if overlay and "masks" in overlay:  # taken whole
        base.pop("masks", None)
    if not files:
        base["training_images"]["sizes"] = [20, 200]
    return params.parse(params.merge(base, {"methods": METHODS, **(overlay or {})}))


def built(overlay=None, *files):
    return build(settings(overlay, *files), ROOT)


def cells(made: Plan, step: str) -> list[Cell]:
    return [cell for cell in made.cells.values() if cell.step == step]


def test_segmenters_are_found_by_file_and_declare_themselves():
    assert contract.names() == ["grounded_sam", "scenes"]
    for name in contract.names():
        info = contract.find(name).INFO
        assert info.name == name and info.title and info.licence
        assert set(info.files) <= set(contract.find(name).Settings.model_fields)


def test_choosing_one_does_not_load_torch():
    code = (
        "import sys; from palimpsest.segmenters import contract; [contract.find(n) for n in contract.names()];"
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_masks_from_a_file_need_no_images():
    made = built()
    assert {c.place for c in cells(made, "masks")} == {
        f"{theme}/{chunk}" for theme in ("uncased", "breakage", "glitch") for chunk in ("0_20", "20_200")
    }
    assert not cells(made, "images")
    one = next(c for c in cells(made, "erase") if c.where["variant"] == "uncased.200")
    assert [c.name for c in one.inputs] == ["masks uncased/0_20", "masks uncased/20_200"]
    everything = next(c for c in cells(made, "erase") if c.where["variant"] == "all.600")
    assert len(everything.inputs) == 6
    assert {Needs(made).images(c) for c in cells(made, "masks")} == {20, 180}
    assert "making masks" not in Needs(made).gpu_memory


def test_masks_by_words_are_made_of_the_target_images():
    made = built(None, PAPER)
    for cell in cells(made, "masks"):
        (source,) = cell.inputs
        assert source.step == "images" and source.where["role"] == "target_images"
        assert source.where["theme"] == cell.where["theme"] and source.where["chunk"] == cell.where["chunk"]
        assert set(cell.raw) == {"IDEA-Research/grounding-dino-tiny", "facebook/sam-vit-huge"}
    assert len(cells(made, "masks")) == len(cells(made, "images")) == 3 * 3
    assert Needs(made).gpu_memory["making masks"] is None or Needs(made).gpu_memory["making masks"] > 0


def test_no_method_no_masks():
    assert not cells(built({"methods": {"uce": []}}), "masks")
    assert not cells(built({"methods": {"uce": []}, "masks": None}), "masks")


def test_a_setting_of_the_segmenter_moves_masks_and_what_is_trained_on_them():
    before, after = (
        built({"masks": {**SCENES, "path": p}}) for p in (SCENES["path"], "data/micro/other.parquet")
    )
    moved = {c.step for path, c in after.cells.items() if path not in before.cells}
    assert {"masks", "erase", "generate"} <= moved
    kept = {c.step for path, c in after.cells.items() if path in before.cells}
    assert {"prompts", "suppression", "keywords"} <= kept


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ({"masks": None}, r"nothing says how they are made.*grounded_sam"),
        ({"masks": {"kind": "scene"}}, r"kind 'scene' does not exist; allowed: \['grounded_sam', 'scenes'\]"),
        ({"masks": {"kind": "scenes"}}, r"masks \(scenes\): path: Field required"),
        ({"masks": {**SCENES, "pth": 1}}, r"pth: unknown key; did you mean 'path'"),
        (
            {"training_images": {"sizes": [20, 300]}},
            r"holds 200 pictures of theme 'uncased', and 300 are asked for; lower training_images.sizes.*--per-theme 300",
        ),
        (
            {"themes": {"uncased": {"detailed": ["uncased", "rust"]}}},
            r"no pictures of \['rust'\] of theme 'uncased'; it has \['bare chassis'",
        ),
        (
            {"masks": {"kind": "grounded_sam", "detector": "a/b", "segmenter": "c/d", "phrases": {"gear": "wheel", "gears": " "}}},
            r"\['gear'\] are no keywords(.|\n)*'gears' has an empty phrase",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_when_settings_are_validated(overlay, message):
    with pytest.raises(params.BadSettings, match=message):
        built(overlay)


def test_missing_files_are_named_before_a_run(tmp_path):
    (problem,) = weights.check_masks(settings(), tmp_path)
    assert "masks: there is no data/micro/scenes.parquet" in problem
    for problem in weights.check_masks(settings(None, PAPER), tmp_path):
        assert "hf download" in problem and "--revision" in problem and "set masks." in problem
    # a plan can be made without it, as without prompts
    for name in ("methods", "models", "data"):
        (tmp_path / name).mkdir()
    shutil.copytree(ROOT / "methods", tmp_path / "methods", dirs_exist_ok=True)
    assert cells(build(settings(), tmp_path), "masks")


@dataclasses.dataclass
class Workplace:
    folder: Path

    def made(self, cell: Cell) -> Path:
        """Run a cell of the plan with its files in this folder."""
        spec = cell.spec()
        job = Job.from_dict({**spec, "output": str(self.folder / spec["output"])})
        masks.run(dataclasses.replace(job, modules=[], roots=[], sources=job.sources, code=job.code))
        return self.folder / spec["output"]


def test_the_step_writes_what_fitting_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(Job, "check", lambda job: None)
    made = built()
    paths = {
        c.place: Workplace(tmp_path).made(c) for c in cells(made, "masks") if c.where["theme"] == "glitch"
    }
    frame = store.read_parquet(paths["glitch/0_20"])
    assert frame["found"].all() and len(frame) == 20
    assert store.read_meta(paths["glitch/0_20"])["images"] == 20
    assert store.read_meta(paths["glitch/0_20"])["nothing_found"] == 0
    fit = next(c for c in cells(made, "erase") if c.where["variant"] == "glitch.200")
    job = Job.from_dict(fit.spec())
    inputs = [dataclasses.replace(i, path=tmp_path / i.path) for i in job.inputs]
    data = erase.training_data(dataclasses.replace(job, inputs=inputs))
    assert isinstance(data, TrainingData)
    (group,) = data.role("masked_images")
    assert group.images.shape == (200, 64, 64, 3) and group.masks.shape == (200, 64, 64)
    assert group.masks.dtype == bool and 0.3 < group.masks.mean() < 0.8
    assert group.keywords[:6] == ("glitch", "static", "ghost image", "warped face", "scrambled", "glitch")
    assert np.allclose(frame["share"].to_numpy(), group.masks[:20].mean(axis=(1, 2)))


def test_the_step_refuses_what_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(Job, "check", lambda job: None)
    made = built({"model": {"resolution": 128}})
    cell = next(c for c in cells(made, "masks"))
    with pytest.raises(ValueError, match=r"are uint8 \(64, 64, 3\); the model's are uint8 \(128, 128, 3\)"):
        Workplace(tmp_path).made(cell)
    asked = contract.Asked("uncased", ("gears",), 0, 1)
    picture = contract.Picture(np.zeros((8, 8, 3), np.uint8), "gears", "gears")
    with pytest.raises(ValueError, match="a mask is bool"):
        masks.checked(contract.Masked(picture, np.zeros((4, 4), bool), True), 8, asked)
    other = dataclasses.replace(picture, keyword="rust")
    with pytest.raises(ValueError, match="shows 'rust'"):
        masks.checked(contract.Masked(other, np.zeros((8, 8), bool), True), 8, asked)


def test_too_few_rows_are_an_error_in_the_job_too(monkeypatch):
    monkeypatch.chdir(ROOT)
    chosen = registry.chosen(settings())
    with pytest.raises(ValueError, match="holds 200 pictures of theme 'glitch', and 201"):
        list(
            chosen.segmenter.masked(
                chosen.settings,
                contract.Asked("glitch", tuple(settings().themes["glitch"].detailed), 0, 201),
                [],
            )
        )
