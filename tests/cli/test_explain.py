from __future__ import annotations

import copy
from pathlib import Path

import polars as pl
import pytest

from palimpsest import params, store
from palimpsest.cells import Cell
from palimpsest.cli.explain import NoSuchCell, differences, find, flatten
from palimpsest.plan.build import Plan, build
from tests.cli.conftest import Run

PLACE = "uce/diffusers2025/uncased.detailed/nsfw"


@pytest.fixture
def made(project: Path) -> Plan:
    return build(params.load("params.yaml"), ".")


def generate(made: Plan) -> Cell:
    return find(made, f"generate {PLACE}")[0]


def test_a_cell_is_found_by_path_key_name_and_place(made: Plan) -> None:
    cell = generate(made)
    assert cell.step == "generate"
    for text in (cell.path, f"./{cell.path}", cell.key, cell.key[:8], cell.name, PLACE):
        assert find(made, text)[0] is cell, text
    assert {c.step for c in find(made, PLACE)} == {"generate", "score", "compare"}
    assert [c.step for c in find(made, "report")] == ["report"]


def test_a_path_with_the_key_of_another_plan_means_the_cell_at_its_place(made: Plan) -> None:
    cell = generate(made)
    assert find(made, cell.path.replace(cell.key, "0" * 16)) == [cell]


def test_an_unknown_cell_is_answered_with_what_is_near(made: Plan) -> None:
    with pytest.raises(NoSuchCell, match=r"uce/diffusers2025.*--config"):
        find(made, "uncased.detailed diffusers2025 generate")
    with pytest.raises(NoSuchCell, match="begin with"):
        find(made, "no/such/cell")


def test_explain_prints_the_recipe_and_where_the_file_belongs(run: Run, made: Plan) -> None:
    cell = generate(made)
    result = run("explain", PLACE)
    assert result.exit_code == 0, result.output
    assert f"{cell.path} (missing)" in result.output
    assert 'method = "palimpsest.methods.uce"' in result.output
    assert "no artifact with another key" in result.output


def write_older(made: Plan, cell: Cell, recipe: dict, key: str = "0123456789abcdef") -> Path:
    path = made.root / cell.path.replace(cell.key, key)
    store.write_parquet(pl.DataFrame({"x": [1]}), path, {"recipe": recipe})
    return path


def test_explain_says_in_what_an_older_artifact_differs(run: Run, made: Plan) -> None:
    cell = generate(made)
    recipe = copy.deepcopy(cell.recipe)
    recipe["args"]["sampler"]["steps"] += 5
    recipe["args"]["settings"]["forgotten"] = True
    recipe["code"] = "f" * 32
    older = write_older(made, cell, recipe)
    lines = run("explain", cell.key).output
    steps = cell.args["sampler"]["steps"]
    assert f"differs from {older.relative_to(made.root)} in" in lines
    assert f"args: sampler.steps: {steps + 5} -> {steps}" in lines
    assert "args: settings.forgotten = true is gone" in lines
    assert f"code: {'f' * 32} -> {cell.code}" in lines


def test_a_changed_input_is_followed_to_the_cause(run: Run, made: Plan) -> None:
    cell = generate(made)
    prompts = next(c for c in cell.inputs if c.step == "prompts")
    old_prompts = copy.deepcopy(prompts.recipe)
    old_prompts["args"]["seed"] += 1
    write_older(made, prompts, old_prompts, "aaaaaaaaaaaaaaaa")
    recipe = copy.deepcopy(cell.recipe)
    for source in recipe["inputs"]:
        if source[0] == "prompts":
            source[2] = "aaaaaaaaaaaaaaaa"
    write_older(made, cell, recipe)
    output = run("explain", cell.path).output
    assert f"input {prompts.name}: aaaaaaaaaaaaaaaa -> {prompts.key}" in output
    assert f"args: seed: {prompts.args['seed'] + 1} -> {prompts.args['seed']}" in output


def test_a_damaged_older_artifact_is_named_with_its_remedy(run: Run, made: Plan) -> None:
    cell = generate(made)
    write_older(made, cell, {}).write_bytes(b"PAR1 half a file")
    result = run("explain", cell.key)
    assert result.exit_code == 0
    assert "cannot be read" in result.output
    assert "dvc checkout --force" in result.output


def test_explain_of_an_overlay(run: Run) -> None:
    assert (
        run("explain", "--config", "experiments/paper.yaml", "uce/compvis2023/horror.concise").exit_code == 0
    )
    assert run("explain", "uce/compvis2023/horror.concise").exit_code == 1


def test_equal_recipes_do_not_differ_and_new_inputs_are_named(made: Plan) -> None:
    recipe = generate(made).recipe
    assert differences(recipe, recipe) == []
    without = {**recipe, "inputs": []}
    assert [line for line in differences(without, recipe) if line.endswith("is new")]
    assert [line for line in differences(recipe, without) if line.endswith("is gone")]


def test_flatten_numbers_lists_of_mappings_and_keeps_other_lists() -> None:
    nested = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": 2}, {"e": 3}], "f": {}}
    assert dict(flatten(nested)) == {"a.b": 1, "a.c": [1, 2], "d[0].e": 2, "d[1].e": 3, "f": {}}


def test_a_report_says_in_what_it_differs_from_the_last_one(run: Run, made: Plan) -> None:
    cell = made.final
    recipe = copy.deepcopy(cell.recipe)
    recipe["inputs"] = [
        [step, where, "a" * 16] if step == "score" else [step, where, key]
        for step, where, key in recipe["inputs"]
    ]
    older = made.root / cell.path.replace(cell.key, "0123456789abcdef")
    older.parent.mkdir(parents=True)
    older.write_text("<html>")
    assert "(this artifact carries no recipe)" in run("explain", "report").output
    store.write_json({"recipe": recipe}, older.with_name("meta.json"))
    score = next(c for c in cell.inputs if c.step == "score")
    old_score = copy.deepcopy(score.recipe)
    old_score["args"]["detector"]["dtype"] = "float64"
    write_older(made, score, old_score, "a" * 16)
    output = run("explain", "report").output
    count = sum(c.step == "score" for c in cell.inputs) - 1
    assert f"input {score.name}: {'a' * 16} -> {score.key} (and {count} more like it)" in output
    assert 'args: detector.dtype: "float64" -> ' in output


def test_an_older_input_that_is_not_here_is_named(run: Run, made: Plan) -> None:
    cell = generate(made)
    recipe = copy.deepcopy(cell.recipe)
    for source in recipe["inputs"]:
        source[2] = "b" * 16
    write_older(made, cell, recipe)
    assert "the older one is not here" in run("explain", cell.key).output
