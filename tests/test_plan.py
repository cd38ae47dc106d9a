"""The plan decides what runs, so these tests state which change moves which keys."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from palimpsest import fingerprint, params
from palimpsest.methods import registry
from palimpsest.plan.build import Plan, build
from palimpsest.reports import select, tables
from palimpsest.reports.inputs import ReportInputs
from palimpsest.runs import Run
from palimpsest.steps import aggregate

ROOT = Path(__file__).parents[1]


# The default experiment with both keyword sets and two sizes, so that there is something to tell apart.
WIDE = {"variants": {"all_keyword_sets": ["detailed", "concise"]}, "training_images": {"sizes": [20, 200]}}


def settings(**overlay):
    default = params.merge(params.read_yaml(ROOT / "params.yaml"), WIDE)
    return params.parse(params.merge(default, overlay))


def built(**overlay) -> Plan:
    return build(settings(**overlay), ROOT)


def moved(before: Plan, after: Plan) -> Counter:
    """Steps of the cells whose path is new."""
    return Counter(cell.step for path, cell in after.cells.items() if path not in before.cells)


@pytest.fixture(scope="module")
def base() -> Plan:
    return built()


def test_building_twice_gives_the_same_paths(base):
    assert list(built().cells) == list(base.cells)


def test_a_threshold_moves_only_the_tables_and_the_report(base):
    after = built(rules={"official_joined": {"kind": "joined", "threshold": 0.6}})
    assert moved(base, after) == {"aggregate": 1, "classifiers": 1, "report": 1}


def test_the_report_depends_on_its_layout_and_on_measured_speeds(base):
    layouts = [p for p in (ROOT / "src/palimpsest/reports/templates").rglob("*") if p.is_file()]
    speeds = list((ROOT / "benchmarks/results").glob("*.json"))
    named = {f"reports/templates/{p.name}" for p in layouts} | {
        f"benchmarks/results/{p.name}" for p in speeds
    }
    assert layouts and speeds and named == set(base.final.raw)


def test_bootstrap_resamples_move_only_the_tables_and_the_report(base):
    after = built(statistics={"resamples": 300})
    assert moved(base, after) == {"aggregate": 1, "classifiers": 1, "quality_table": 1, "report": 1}


def test_the_batch_size_moves_nothing_but_the_reports_settings(base):
    assert moved(base, built(sampler={"batch": 7})) == {"report": 1}


def test_guidance_moves_every_image_and_what_derives_from_images(base):
    after = built(sampler={"guidance": 4.0})
    counts = moved(base, after)
    assert counts["generate"] == sum(c.step == "generate" for c in base.cells.values())
    assert "prompts" not in counts and "images" not in counts
    fitted = [cell for path, cell in after.cells.items() if path not in base.cells and cell.step == "erase"]
    # concise sets are derived from images, so what is fitted on them follows; nothing else is fitted again
    assert fitted and all(cell.where["variant"].endswith(".concise") for cell in fitted)


def test_a_methods_settings_move_its_own_cells_only(base):
    after = built(overrides={"uce": {"lamb": 0.25}})
    changed = [cell for path, cell in after.cells.items() if path not in base.cells]
    owners = {cell.where["method"] for cell in changed if "method" in cell.where}
    assert owners == {"uce"}
    assert {cell.step for cell in changed} == {
        "erase", "generate", "score", "compare", "quality", "quality_table", "aggregate", "report",
    }  # fmt: skip


def test_a_new_suite_adds_its_cells_only(base):
    extra = {"kind": "benign", "sources": {"more": {"format": "coco", "path": "data/micro/prompts/coco.csv"}}}
    after = built(suites={"more": extra})
    changed = [cell for path, cell in after.cells.items() if path not in base.cells]
    assert {cell.where["suite"] for cell in changed if "suite" in cell.where} == {"more"}
    assert not {"erase", "suppression", "keywords", "images"} & {cell.step for cell in changed}


def test_an_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(params.BadSettings, match=r"no method 'ucee'.*'uce'"):
        built(methods={"ucee": []})


def test_larger_training_sets_keep_the_smaller_ones(base):
    after = built(methods={"ac": []}, training_images={"sizes": [20, 200, 300]})
    images = [cell for path, cell in after.cells.items() if path not in base.cells and cell.step == "images"]
    assert {cell.where["chunk"] for cell in images} == {"200_300"}


def test_a_preset_with_another_sampler_brings_its_own_baseline():
    made = built(methods={"sd": ["default"], "sd_np": []})
    assert {c.where["preset"] for c in made.cells.values() if c.where.get("method") == "sd"} == {"default"}
    run = made.runs[-1]
    made.runs[-1] = Run(
        **{**run.__dict__, "sampler": run.sampler.model_copy(update={"name": "pndm", "steps": 20})}
    )
    made.cells.clear()
    made._build()
    presets = {c.where["preset"] for c in made.cells.values() if c.where.get("method") == "sd"}
    assert presets == {"default", "pndm_20_g3_float32"}


def test_the_papers_experiment_has_the_papers_cells_and_no_others():
    """Tables 3, 4, 12, 15 to 19: what was run on what."""
    paper = build(params.load(ROOT / "params.yaml", ROOT / "experiments/paper.yaml"), ROOT)
    texts = {"sd_np/default", "sld/medium", "sld/strong", "sld/max", "esd/u_compvis", "esd/x_compvis"}
    texts |= {"spm/paper", "uce/compvis2023", "au/official"}
    images = {"ac/benchmark", "selfd/official", "salun/paper", "mace/t14_object"}
    themes = ("nudity", "violence", "horror")
    expected = {("sd/default", "none"), ("cleaned/default", "all.fixed")}
    expected |= {
        ("ace/official", "all.detailed"),
        ("erasediff/official", "all.600"),
        ("metaun/official", "all.600"),
    }
    for run in texts:
        expected |= {(run, f"{theme}.{words}") for theme in themes for words in ("detailed", "concise")}
        expected.add((run, "all.detailed"))
    for run in images:
        expected |= {(run, f"{theme}.{size}") for theme in themes for size in (20, 200, 1000)}
        expected.add((run, "all.600"))
    assert len(expected) == 108
    cells = [c for c in paper.cells.values() if c.step == "generate"]
    found: dict[str, set] = {}
    for cell in cells:
        place = (f"{cell.where['method']}/{cell.where['preset']}", cell.where["variant"])
        found.setdefault(cell.where["suite"], set()).add(place)
    assert found["nsfw"] == found["coco"] == expected
    for theme in themes:
        attacked = {(run, f"{theme}.detailed") for run in texts} | {(run, f"{theme}.200") for run in images}
        assert found[f"ring_a_bell_{theme}"] == attacked | {("sd/default", "none")}
    assert paper.shards("nsfw") == 8 and paper.shards("coco") == 10


def test_every_method_of_the_xl_experiment_is_defined_for_it():
    made = build(params.load(ROOT / "params.yaml", ROOT / "experiments/sdxl.yaml"), ROOT)
    assert not made.tables.aggregate.args.get("skipped")
    assert {c.where["method"] for c in made.cells.values() if c.step == "generate"} == set(
        made.params.methods
    )


def test_published_tables_are_read_by_the_experiment_that_repeats_them_alone(base):
    paper = build(params.load(ROOT / "params.yaml", ROOT / "experiments/paper.yaml"), ROOT)
    assert paper.final.args["reference"] == "data/reference"
    assert {"data/reference/study.json", "data/reference/paper_counts.csv"} <= set(paper.final.raw)
    for built in (
        base,
        Plan(paper.params.model_copy(update={"judge": "vqa", "rules": base.params.rules}), ROOT),
    ):
        assert "reference" not in built.final.args
        assert not [path for path in built.final.raw if path.startswith("data/reference")]


def test_the_report_reads_the_prompts_whose_toxicity_it_shows(base):
    assert [cell.where["suite"] for cell in base.final.inputs if cell.step == "prompts"] == ["nsfw"]


def test_building_a_plan_does_not_load_torch():
    code = (
        "import sys; from palimpsest import params; from palimpsest.plan.build import build;"
        f"build(params.load({str(ROOT / 'params.yaml')!r}), {str(ROOT)!r});"
        "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_pattern_is_told_apart_by_its_step(base):
    seen: dict[str, str] = {}
    for path, cell in base.cells.items():
        assert seen.setdefault(path, cell.step) == cell.step
        assert cell.key in path


def test_every_cell_of_a_derived_keyword_set_reads_the_keywords(base):
    cells = [
        c
        for c in base.cells.values()
        if c.step in ("erase", "generate") and c.where["variant"].endswith(".concise")
    ]
    assert {c.step for c in cells} == {"erase", "generate"}
    assert all("keywords" in {i.step for i in c.inputs} for c in cells)


def test_a_key_is_the_digest_of_the_recipe_as_plain_json(base):
    """Keys are computed from shared pieces of text; this is what they stand for."""
    for cell in base.cells.values():
        text = json.dumps(cell.recipe, sort_keys=True, ensure_ascii=False)
        assert cell.text() == text
        assert cell.key == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_job_is_described_in_plain_types(base):
    """A job that had to load this package's classes to read its description would load code that its recipe does not count."""

    def plain(value):
        if type(value) is dict:
            return all(type(name) is str and plain(item) for name, item in value.items())
        if type(value) in (list, tuple):
            return all(plain(item) for item in value)
        return value is None or type(value) in (str, int, float, bool)

    for cell in base.cells.values():
        assert plain(cell.spec()), cell.name


def variants(made: Plan, method: str) -> list[str]:
    return sorted(row["variant"] for row in made.tables.gathered[1]["runs"] if row["method"] == method)


def test_a_method_can_be_kept_to_some_variants():
    themes = ["uncased", "breakage", "glitch", "all"]
    made = built(variants={"themes": themes, "only": {"uce": ["all.*"], "ac": ["*.20", "all.600"]}})
    assert set(variants(made, "uce")) == {"all.concise", "all.detailed"}
    assert variants(made, "ac") == ["all.600", "breakage.20", "glitch.20", "uncased.20"]
    assert len(variants(made, "sd_np")) > 4


@pytest.mark.parametrize(
    ("only", "words"),
    [
        ({"uce": ["all.600"]}, r"variants\.only\.uce: \['all\.600'\] match none of its variants: \['uncased"),
        ({"ucee": ["all.*"]}, "no method 'ucee'"),
    ],
)
def test_patterns_that_mean_nothing_are_errors(only, words):
    with pytest.raises(params.BadSettings, match=words):
        built(variants={"only": only})


def test_a_suite_can_be_kept_to_some_variants():
    extra = {"kind": "unsafe", "theme": "glitch", "all_themes": False, "variants": ["*.detailed", "*.200"]}
    extra["sources"] = {"more": {"format": "coco", "path": "data/micro/prompts/coco.csv"}}
    made = built(suites={"more": extra})
    places = {
        c.where["variant"] for c in made.cells.values() if c.step == "generate" and c.where["suite"] == "more"
    }
    assert places <= {"none", "glitch.detailed", "glitch.200"}
    assert {"none", "glitch.detailed"} <= places


def test_who_runs_on_a_suite_changes_no_cell_that_is_left(base):
    after = built(suites={"coco": {"variants": ["all.*"]}})
    assert moved(base, after) == {"aggregate": 1, "quality_table": 1, "report": 1}


def own_methods(tmp_path: Path, **files: str) -> Path:
    """A project folder whose methods are the repository's and some more."""
    for name in ("data", "models", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "methods", tmp_path / "methods")
    for name, text in files.items():
        (tmp_path / f"methods/{name}.yaml").write_text(text)
    return tmp_path


ELSEWHERE = (
    "method: external\ntitle: {0}\nrun: [default]\nabout: {{licence: terms of {0}}}\n"
    "presets: {{default: {{manifest: given/{0}/m.csv}}}}\n"
)


def given(folder: Path, name: str) -> None:
    (folder / "given" / name).mkdir(parents=True)
    (folder / "given" / name / "m.csv").write_text("image_id,file\na,a.png\n")
    (folder / "given" / name / "a.png").write_bytes(b"a")


def test_several_settings_files_share_a_module_and_keep_their_own_title(tmp_path):
    folder = own_methods(tmp_path, one=ELSEWHERE.format("One"), two=ELSEWHERE.format("Two"))
    for name in ("One", "Two"):
        given(folder, name)
    made = build(settings(methods={"sd": [], "one": [], "two": []}), folder)
    places = {c.where["method"]: c.where["variant"] for c in made.cells.values() if c.step == "generate"}
    assert places == {"sd": "none", "one": "all.fixed", "two": "all.fixed"}
    described = {m["name"]: m for m in made.final.args["methods"]}
    assert described["one"]["title"] == "One" and described["two"]["licence"] == "terms of Two"
    assert described["one"]["module"] == described["two"]["module"] == "palimpsest.methods.external"


def test_an_image_made_elsewhere_is_part_of_the_key_of_its_own_cells(tmp_path):
    folder = own_methods(tmp_path, one=ELSEWHERE.format("One"), two=ELSEWHERE.format("Two"))
    for name in ("One", "Two"):
        given(folder, name)
    chosen = settings(methods={"sd": [], "one": [], "two": []})
    before = build(chosen, folder)
    (folder / "given/One/a.png").write_bytes(b"b")
    after = build(chosen, folder)
    changed = [cell for path, cell in after.cells.items() if path not in before.cells]
    assert {cell.where["method"] for cell in changed if "method" in cell.where} == {"one"}


def test_what_runs_by_no_default_has_to_be_asked_for_by_name(base):
    assert not [run for run in base.runs if run.module.endswith(".external")]
    with pytest.raises(params.BadSettings, match=r"methods\.external: .*run: \[\].*\['default'\]"):
        built(methods={"sd": [], "external": []})


def test_methods_that_do_not_fit_the_model_are_listed_with_the_reason():
    made = built(model={"architecture": "sdxl"})
    skipped = made.tables.aggregate.args["skipped"]
    reasons = {item["run"]["method"]: item["reason"] for item in skipped}
    assert set(reasons) == {"au"}
    assert reasons["au"].startswith(
        "not applicable: au is defined for sd1, sd2, and model.architecture is sdxl: its attack"
    )
    run = {c.where["method"] for c in made.cells.values() if c.step == "generate"}
    assert "sd" in run and not run & set(reasons)
    assert all("sdxl" in registry.get(name).INFO.architectures for name in run - {"sd"})
    rows = pl.concat([aggregate.skipped_row("micro", item) for item in skipped])
    methods = [{"name": m["name"], "title": m["title"]} for m in made.final.args["methods"]]
    table = tables.failure_table(select.rows_of(ReportInputs(made.params, rows, "", methods=methods)))
    shown = {row["label"]: (row["status"], row["reason"]) for row in table.rows}
    assert shown["AU"] == ("skipped", reasons["au"])
    assert len(table.rows) == len(skipped)


def test_a_large_folder_is_read_once_and_any_edit_of_it_is_seen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fingerprint, "LARGE", 100)
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_bytes(name.encode() * 50)
    read = []
    monkeypatch.setattr(
        fingerprint, "_hash", lambda path, hashed=fingerprint._hash: read.append(path) or hashed(path)
    )
    first = fingerprint.fingerprint("images", root=tmp_path)
    assert fingerprint.fingerprint("images", root=tmp_path) == first
    assert len(read) == 3
    stat = (folder / "b").stat()
    (folder / "b").write_bytes(b"x" * 50)
    os.utime(folder / "b", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint.fingerprint("images", root=tmp_path) != first
    assert len(read) == 4
