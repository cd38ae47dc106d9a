"""Thresholds from labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from palimpsest import params, store
from palimpsest.detectors import calibration


def made(count: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores that are right when cut at 0.2, with noise; three images per prompt."""
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < 0.2
    scores = np.clip(np.where(truth, 0.35, 0.08) + rng.normal(0, 0.09, count), 0, 1)
    return scores, truth, [str(i // 3) for i in range(count)]


@pytest.mark.parametrize("goal", calibration.GOALS)
def test_no_other_threshold_does_better(goal: calibration.Goal) -> None:
    scores, truth, _ = made(80)
    found = calibration.best_threshold(scores, truth, goal)
    best = calibration.value_of(goal, truth, scores > found)
    for cut in np.linspace(0, 1, 4001):
        assert calibration.value_of(goal, truth, scores > cut) <= best + 1e-12


def test_goals_are_the_usual_ones() -> None:
    from sklearn import metrics

    _, truth, _ = made(200)
    said = np.random.default_rng(1).random(200) < 0.4
    theirs = {
        "balanced_accuracy": metrics.balanced_accuracy_score,
        "f1": metrics.f1_score,
        "accuracy": metrics.accuracy_score,
    }
    for goal in calibration.GOALS:
        assert calibration.value_of(goal, truth, said) == pytest.approx(theirs[goal](truth, said))


def test_a_better_threshold_than_a_half_is_found_and_its_worth_is_held_out() -> None:
    scores, truth, prompts = made()
    found = calibration.calibrate(scores, truth, prompts)
    assert 0.15 < found.threshold < 0.28
    assert found.value > 0.9 > 0.6 > found.at_half
    assert found.spread[0] <= found.spread[1]
    inside = calibration.value_of("balanced_accuracy", truth, scores > found.threshold)
    assert found.value <= inside
    assert found == calibration.calibrate(scores, truth, prompts)


def test_scores_that_say_nothing_are_worth_nothing() -> None:
    """Picked and judged on the same images, a threshold of noise looks good; held out, it does not."""
    rng = np.random.default_rng(0)
    values, inside = [], []
    for seed in range(20):
        scores, truth = rng.random(40), rng.random(40) < 0.5
        one = calibration.calibrate(scores, truth, [str(i) for i in range(40)], seed=seed)
        values.append(one.value)
        inside.append(calibration.value_of("balanced_accuracy", truth, scores > one.threshold))
    assert np.mean(inside) > 0.58
    assert np.mean(values) < 0.54


def test_images_of_one_prompt_are_never_parted() -> None:
    _, truth, prompts = made(90)
    fold = calibration.folds_of(prompts, truth, 5, 0)
    assert all(len(set(fold[i : i + 3])) == 1 for i in range(0, 90, 3))
    assert set(fold) == set(range(5))
    with pytest.raises(ValueError, match="5 folds of 2 prompts"):
        calibration.folds_of(["a", "b", "b"], truth[:3], 5, 0)


def test_one_answer_only_is_refused() -> None:
    with pytest.raises(ValueError, match="0 labelled and 3 unlabelled"):
        calibration.best_threshold(np.array([0.1, 0.2, 0.3]), np.zeros(3, bool))


def test_the_command_prints_a_rule_that_the_settings_take(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    scores, truth, prompts = made()
    ids = [f"i2p/{i:05d}/00" for i in range(len(scores))]
    table = pl.DataFrame(
        {
            "image_id": ids,
            "source": "i2p",
            "prompt_id": [int(p) for p in prompts],
            "label": "theme/gears",
            "score": scores.astype(np.float32),
        }
    )
    store.write_parquet(table, tmp_path / "scores.parquet", {})
    pl.DataFrame({"image_id": ids, "gears": truth.astype(int)}).write_csv(tmp_path / "labels.csv")
    calibration.main([str(tmp_path / "scores.parquet"), "--labels", str(tmp_path / "labels.csv")])
    rule = params.Rule.model_validate(yaml.safe_load(capsys.readouterr().out)["rules"]["calibrated"])
    assert 0.15 < rule.thresholds["gears"] < 0.28
    other = pl.DataFrame({"image_id": ["x/0/0"], "gears": [1]})
    with pytest.raises(ValueError, match="image ids look like 'i2p/00000/00' and 'x/0/0'"):
        calibration.calibrate_themes(table, other)
    with pytest.raises(ValueError, match=r"'theme/wires' was never scored; the table has \['theme/gears'\]"):
        calibration.calibrate_themes(table, other.rename({"gears": "wires"}))
