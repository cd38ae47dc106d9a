from __future__ import annotations

from pathlib import Path

import pytest

from palimpsest import params

ROOT = Path(__file__).parents[1]


def test_the_experiments_of_the_repository_load():
    assert params.load(ROOT / "params.yaml").experiment == "micro"
    paper = params.load(ROOT / "params.yaml", ROOT / "experiments/paper.yaml")
    assert list(paper.themes) == ["nudity", "violence", "horror"]
    xl = params.load(ROOT / "params.yaml", ROOT / "experiments/sdxl.yaml")
    assert (xl.model.architecture, xl.model.resolution) == ("sdxl", 1024)
    assert paper.sampler.steps == 40 and paper.sampler.name == "pndm" and paper.model.revision


def test_every_problem_is_named_at_once(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("sampler: {stepz: 3, steps: 0, name: ddimm}\njudge: nobody\nmodel: {resolution: 63}\n")
    with pytest.raises(params.BadSettings) as caught:
        params.load(ROOT / "params.yaml", bad)
    text = str(caught.value)
    for part in (
        "bad.yaml",
        "sampler.stepz",
        "did you mean 'steps'",
        "sampler.steps",
        "'ddimm'",
        "'dpmsolver++'",
        "model.resolution",
        "63",
    ):
        assert part in text, part


def test_names_that_exist_nowhere_are_errors_with_the_allowed_ones(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("judge: nobody\nvariants: {themes: [uncased, horror]}\n")
    with pytest.raises(
        params.BadSettings,
        match=r"horror.*no theme.*uncased.*judge: 'nobody' is no detector; allowed: \['vqa', 'parts'\]",
    ):
        params.load(ROOT / "params.yaml", bad)


def test_replaced_sections_are_taken_whole(tmp_path):
    overlay = tmp_path / "o.yaml"
    overlay.write_text("replaces: [overrides]\noverrides: {uce: {lamb: 0.1}}\n")
    assert params.load(ROOT / "params.yaml", overlay).overrides == {"uce": {"lamb": 0.1}}


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(params.BadSettings, match="x.yaml"):
        params.load(path)


def test_merge_removes_a_key_set_to_null():
    assert params.merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": None, "e": 5}, "d": {"x": 1}}) == {
        "a": {"c": 2, "e": 5},
        "d": {"x": 1},
    }
