"""The bill of an experiment: sums that can be checked by hand, at the paper's scale and in the micro world."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from palimpsest import params
from palimpsest.cli.download import patterns_of
from palimpsest.cli.estimate import overlay, report
from palimpsest.estimate import bill, chips, downloads, text
from palimpsest.estimate.work import Counter
from palimpsest.needs import Needs
from palimpsest.plan.build import build
from tests.estimate.conftest import ROOT

ATTACKS = 1460 + 2480 + 1030
SUITES = 4703 + 1500 + 1212 + 600 + 10000


@pytest.fixture(scope="module")
def counter(paper):
    return Counter(paper)


@pytest.fixture(scope="module")
def made(paper, counter):
    return bill.make(paper, chips.derived("h200"), counter)


def row(rows, name):
    return next(found for found in rows if found.name == name)


def test_the_paper_s_images_are_counted_from_declared_rows(paper, made):
    assert not any(
        (ROOT / source.path).exists()
        for suite in paper.params.suites.values()
        for source in suite.sources.values()
    )
    assert made.missing == []
    attacked = 0
    for variant in {
        (c.where["method"], c.where["preset"], c.where["variant"])
        for c in paper.cells.values()
        if c.step == "generate"
    }:
        attacked += sum(
            paper.params.suites[suite].sources["ring_a_bell"].rows
            for suite in {c.where["suite"] for c in paper.cells.values()
                          if c.step == "generate" and (c.where["method"], c.where["preset"], c.where["variant"]) == variant}
            if suite.startswith("ring_a_bell")
        )  # fmt: skip
    generated = row(made.stages, "generate").total
    assert generated.images == (made.variants + 1) * SUITES + attacked
    assert attacked > 10 * ATTACKS
    assert made.variants == 107  # and the base: the 108 columns of the paper's grid


def test_evaluations_are_images_times_steps_times_branches(made):
    base = row(made.methods, "sd/default").total
    assert base.images == SUITES + ATTACKS
    assert base.evaluations == base.images * 41 * 2  # PNDM makes 41 of 40 steps
    other = row(made.methods, "sld/medium").total
    assert other.evaluations == other.images * 41 * 3


def test_hours_follow_from_operations_and_rates(paper, made, counter):
    chip = chips.derived("h200")
    cell = next(c for c in paper.cells.values() if c.step == "generate" and c.where["method"] == "sd")
    job = counter.job(cell)
    per_image = 82 * counter.model.evaluation + counter.model.decoding
    assert job.images == 1024
    expected = chip.start + job.reads / chip.read + 1024 * (82 * counter.model.evaluation / 36.85e12)
    expected += 1024 * counter.model.decoding / (67e12 * 0.45) + 1024 * counter.model.prompt / (67e12 * 0.6)
    assert bill.seconds(chip, job) == pytest.approx(expected, rel=1e-6)
    assert 6e13 < per_image < 8e13
    assert sum(found.total.hours for found in made.stages) == pytest.approx(made.total.hours)


def test_a_faster_chip_takes_less_and_small_batches_do_not_outrun_their_kernels(paper, made, counter):
    slow = bill.make(paper, chips.derived("a100"), counter)
    assert slow.total.hours > made.total.hours
    assert slow.total.evaluations == made.total.evaluations
    chip = chips.derived("h200")
    assert chip.seconds("sampling", "bfloat16", 1e6, calls=10) == pytest.approx(0.2)


def test_every_method_of_the_paper_declares_its_fits(paper, made, counter):
    assert made.unknown == []
    work = counter.work(next(c for c in paper.cells.values() if c.step == "erase" and c.where["method"] == "mace"
                                    and c.where["variant"].startswith("all")))  # fmt: skip
    assert (work.themes, work.keywords, work.images) == (3, 14, 200)


def test_disk_is_what_the_doctor_says(paper, made):
    assert made.total.disk == sum(Needs(paper).disk(paper.cells.values()).values())


def test_downloads_name_sizes_and_licences(paper):
    found = {item.path: item for item in downloads.items(paper)}
    model = found["CompVis/stable-diffusion-v1-4"]
    assert model.licence == "CreativeML OpenRAIL-M" and 4e9 < model.bytes < 4.5e9 and not model.note
    assert found["zhiqiulin/clip-flant5-xxl"].bytes > 2e10
    assert "openai/clip-vit-large-patch14-336" in found  # named by no setting, read with the judge
    assert found["data/paper/prompts/4chan.csv"].note == "to be put there"
    assert downloads.to_fetch(list(found.values())) == sum(
        item.bytes or 0 for item in found.values() if not item.here
    )


@pytest.mark.parametrize("model", ["CompVis/stable-diffusion-v1-4", "models/micro/stable-diffusion"])
def test_the_released_safety_checker_is_a_part_of_a_checkpoint(model):
    settings = params.merge(
        params.read_yaml(ROOT / "params.yaml"),
        {
            "model": {"path": model, "revision": "133a221b8aa7292a167afc5127cb63fb5005638b"},
            "overrides": {"safety_checker": None},
            "methods": {"safety_checker": ["official"]},
        },
    )
    found = {item.path: item for item in downloads.items(build(params.parse(settings), ROOT))}
    item = found["CompVis/stable-diffusion-v1-4"]
    checker = "safety_checker/model.safetensors"
    assert item.whole == (item.path == model) and checker in item.stored
    assert item.bytes == (5.49e9 if item.whole else 1.22e9) and not item.note
    asked = patterns_of(item)
    assert checker in asked and ("*/*.safetensors" in asked) == item.whole


def test_prompts_that_nobody_counts_are_said():
    settings = params.load(ROOT / "params.yaml").model_copy()
    found = build(settings, ROOT)
    suite = settings.suites["nsfw"]
    gone = suite.model_copy(
        update={"sources": {"i2p": suite.sources["i2p"].model_copy(update={"path": "no/such.csv"})}}
    )
    object.__setattr__(
        found, "params", settings.model_copy(update={"suites": {**settings.suites, "nsfw": gone}})
    )
    assert bill.missing(found) == [
        "suites.nsfw.sources.i2p: no/such.csv is not here; put it there, or say `rows:` (counted as 0)"
    ]


def test_the_text_says_where_rates_come_from_and_json_holds_the_same(paper, made):
    shown = report(paper, chips.derived("h200"), False, False)
    assert "derived, not measured" in shown and "with bfloat16 everything would take" in shown
    assert max(map(len, shown.splitlines())) < 200
    data = json.loads(report(paper, chips.derived("h200"), False, True))
    assert data["total"]["images"] == made.total.images
    assert data["chip"]["measured"] is False
    assert {item["path"] for item in data["inputs"]} >= {"facebook/sam-vit-huge"}


def test_a_measured_chip_comes_before_a_derived_one(tmp_path):
    mine = replace(chips.derived("h100"), source="measured here", measured=True)
    assert mine.save(tmp_path).is_file()
    assert chips.chip("h100", tmp_path) == mine
    assert not chips.chip("a100", tmp_path).measured


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(chips.UnknownChip, match=r"'h999' is not known; allowed: \['a100'.*--calibrate"):
        chips.chip("h999", ROOT)
    with pytest.raises(FileNotFoundError, match=r"there is no experiments/none.yaml; allowed: .*paper"):
        overlay("none")
    assert chips.called("NVIDIA H200") == "h200" and chips.called("Voodoo") is None


def test_numbers_are_for_people():
    assert [text.number(x) for x in (0, 9999, 12_345, 2_000_000, 3.1e9)] == [
        "0",
        "9999",
        "12.3 k",
        "2.0 M",
        "3.1 G",
    ]
    assert [text.hours(x) for x in (0.0123, 1.26, 377.4)] == ["0.012", "1.3", "377"]
