"""Detectors in the settings: what is refused before anything runs, and what goes into a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from palimpsest import packaged, params
from palimpsest.detectors import registry

ROOT = Path(__file__).parents[2]
VQA = {"kind": "vqa", "path": "models/micro/vqa"}


def settings(detectors: dict, rules: dict | None = None) -> params.Params:
    base = params.read_yaml(ROOT / "params.yaml")
    base["detectors"] = {"vqa": VQA, **detectors}
    base["rules"] = {"first": {"kind": "joined"}, **(rules or {})}
    return params.parse(base)


def test_settings_of_every_detector_are_checked_at_once() -> None:
    bad = {
        "nude": {"kind": "nudenet", "channel_order": "grb"},
        "clip": {"kind": "clip", "path": "x", "templte": "{}"},
        "odd": {"kind": "nothing"},
        "heads": {"kind": "mhsc", "path": "x"},
    }
    with pytest.raises(params.BadSettings) as caught:
        registry.chosen(settings(bad))
    text = str(caught.value)
    assert "detectors.nude (nudenet): channel_order" in text
    assert "did you mean 'template'?" in text
    assert "kind 'nothing' does not exist; allowed: ['clip', 'mhsc', 'nudenet'" in text
    assert "detectors.heads (mhsc): clip: Field required" in text
    with pytest.raises(params.BadSettings, match=r"detectors.vqa \(vqa\): batches: unknown key"):
        registry.chosen(settings({"vqa": {**VQA, "batches": 3}}))
    with pytest.raises(params.BadSettings, match="detectors.clip: path is empty"):
        registry.chosen(settings({"clip": {"kind": "clip"}}))


def test_recipes_hold_what_decides_the_scores() -> None:
    found = registry.chosen(
        settings(
            {"heads": {"kind": "mhsc", "path": "models/micro/mhsc", "clip": "models/micro/clip", "batch": 7}}
        )
    )
    heads = found["heads"]
    assert heads.args["clip"] == "models/micro/clip" and "batch" not in heads.args
    assert set(heads.raw(ROOT)) == {"models/micro/mhsc", "models/micro/clip"}
    assert "missing" not in heads.raw(ROOT).values()
    assert found["vqa"].args == {**VQA, "revision": None, "dtype": "float32"}


def test_a_file_of_a_package_counts_by_its_content_and_not_its_place() -> None:
    nude = registry.chosen(settings({"nude": {"kind": "nudenet"}}))["nude"]
    assert nude.raw(ROOT) == {"package:nudenet/320n.onnx": "c15d8273adad2d0a92f014cc69ab2d6c"}
    assert packaged.find("package:nudenet/320n.onnx").is_file()
    assert packaged.find("package:nudenet/nothing.onnx") is None
    assert packaged.find("package:no_such_package/x") is None
    assert packaged.find("models/micro/vqa") is None


def test_rules_are_for_the_detectors_that_can_answer_them() -> None:
    detectors = {"nude": {"kind": "nudenet"}, "clip": {"kind": "clip", "path": "models/micro/clip"}}
    rules = {
        "largest": {"kind": "argmax", "detectors": ["clip"]},
        "parts": {"kind": "labels", "labels": {"uncased": ["FACE_MALE"]}, "detectors": ["nude"]},
    }
    given = settings(detectors, rules)
    found = registry.chosen(given)
    by_rule = {name: registry.judged_by(given, found, rule) for name, rule in given.rules.items()}
    assert by_rule == {"first": ["vqa"], "largest": ["clip"], "parts": ["nude"]}
    with pytest.raises(
        params.BadSettings, match=r"rules.r: kind joined without labels cannot read the scores of 'nude'"
    ):
        registry.chosen(settings(detectors, {"r": {"kind": "joined", "detectors": ["nude"]}}))
    with pytest.raises(
        params.BadSettings, match=r"kind joined .*'clip'; its kinds: \['argmax', 'calibrated'\]"
    ):
        registry.chosen(settings(detectors, {"r": {"kind": "joined", "detectors": ["clip"]}}))
    with pytest.raises(params.BadSettings, match="must be for the judge 'vqa'"):
        registry.chosen(settings(detectors, {"first": {"kind": "argmax", "detectors": ["clip"]}}))
    with pytest.raises(params.BadSettings, match=r"rules.r.detectors: 'clap' is no detector"):
        settings(detectors, {"r": {"kind": "argmax", "detectors": ["clap"]}})
    with pytest.raises(params.BadSettings, match=r"rules.r.labels: 'nudity' is no theme"):
        settings(detectors, {"r": {"kind": "labels", "labels": {"nudity": ["X"]}, "detectors": ["nude"]}})


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"kind": "any_keyword", "texts": {"uncased": "x"}}, "use kind joined"),
        ({"kind": "labels", "detectors": ["vqa"]}, "kind labels needs them"),
        ({"kind": "joined", "labels": {"uncased": ["x"]}}, "no other does"),
        ({"kind": "calibrated"}, "palimpsest.detectors.calibration"),
        ({"kind": "argmax"}, "needs `detectors:`"),
        (
            {"kind": "calibrated", "thresholds": {"uncased": 0.3}},
            r"themes \['breakage', 'glitch'\] have none",
        ),
    ],
)
def test_rules_that_mean_nothing_are_refused(rule: dict, said: str) -> None:
    with pytest.raises(params.BadSettings, match=said):
        settings({}, {"r": rule})
