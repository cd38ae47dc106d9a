"""Which inputs of a cell are named to the engine, and which detector looks at which pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from palimpsest import memory, params
from palimpsest.cells import Cell
from palimpsest.declarations import declares, plugins
from palimpsest.plan.build import Plan, build
from palimpsest.segmenters import registry

ROOT = Path(__file__).parents[1]


@pytest.fixture
def built(tmp_path: Path) -> Plan:
    for name in ("methods", "models", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    return build(params.load(ROOT / "params.yaml"), tmp_path)


def reached(made: Plan, start: Cell) -> set[str]:
    """Everything that is made for a cell when only what is asked for is named."""
    found: set[str] = set()
    stack = [start]
    while stack:
        cell = stack.pop()
        if cell.path not in found and not cell.made(made.root):
            found.add(cell.path)
            stack += made.asked_for(cell)
    return found


def test_naming_each_edge_once_leaves_nothing_out(built: Plan) -> None:
    report = built.final
    named = built.asked_for(report)
    assert built.tables.aggregate in named and len(named) < 20 < len(report.inputs)
    assert reached(built, report) == {cell.path for cell in built.needed()}


def test_when_the_table_is_there_the_report_names_the_scores_that_it_reads(
    tmp_path: Path, built: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {built.tables.aggregate.path}
    monkeypatch.setattr(Cell, "made", lambda self, root: self.path in there)
    named = {cell.path for cell in built.asked_for(built.final)}
    scores = {cell.path for cell in built.final.inputs if cell.step == "compare"}
    assert scores and scores <= named


def test_a_detector_that_only_counts_parts_looks_at_no_benign_pictures(built: Plan) -> None:
    kinds = {name: suite.kind for name, suite in built.params.suites.items()}
    scores = [cell for cell in built.cells.values() if cell.step == "score"]
    looked = {
        name: {kinds[c.where["suite"]] for c in scores if c.where["detector"] == name}
        for name in built.params.detectors
    }
    assert looked["parts"] == {"unsafe"}
    assert looked[built.params.judge] == set(kinds.values())


def test_a_detector_that_a_rule_reads_looks_at_everything(tmp_path: Path) -> None:
    default = params.read_yaml(ROOT / "params.yaml")
    name = default["quality"]["grd"]["uncased"]["detector"]
    default["quality"]["grd"]["uncased"]["detector"] = next(d for d in default["detectors"] if d != name)
    made = build(params.parse(default), ROOT)
    suites = {c.where["suite"] for c in made.cells.values() if c.where.get("detector") == name}
    assert suites == set(default["suites"]), "nothing says that it counts parts alone"


def test_masks_that_were_in_order_are_not_looked_into_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = params.load(ROOT / "params.yaml")
    looks: list[int] = []
    scenes = registry.chosen(settings).segmenter
    look = scenes.problems

    def counted(*args: object) -> list[str]:
        looks.append(1)
        return look(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(scenes, "problems", counted)
    for _ in range(2):
        registry.check(settings, {"uncased": 20}, ROOT)
    assert len(looks) == 1 and len(memory.recall(tmp_path / registry.MEMORY)) == 1
    for _ in range(2):
        with pytest.raises(params.BadSettings, match="201 are asked for"):
            registry.check(settings, {"uncased": 201}, ROOT)
    assert len(looks) == 3, "what is wrong is looked at each time, so that mending the file is seen"


def test_what_is_kept_is_bounded_and_bad_files_are_nothing(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "kept.json"
    memory.keep(place, {str(n): "x" for n in range(5)}, most=3)
    assert list(memory.recall(place)) == ["2", "3", "4"]
    for text in ("{", "[1]", ""):
        place.write_text(text)
        assert memory.recall(place) == {}
    assert memory.recall(tmp_path / "nowhere") == {}
    memory.keep(
        tmp_path / "a/b/c/kept.json", {"1": "x"}
    )  # a folder whose parent is missing is only a loss of time


def test_a_plugin_is_known_by_what_its_file_defines(tmp_path: Path) -> None:
    texts = {
        "assigned": "INFO = 1\n",
        "annotated": "INFO: int = 1\n",
        "function": "def INFO():\n    return 1\n",
        "said": '"""\nINFO = 1\n"""\n',
        "inside": "def other():\n    INFO = 1\n",
        "longer": "INFORMATION = 1\n",
        "_private": "INFO = 1\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    assert plugins(tmp_path, "INFO") == ["annotated", "assigned", "function"]
    assert not declares(tmp_path / "absent.py", "INFO")
