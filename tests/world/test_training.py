"""The training loop, the parts' shapes and the questions the judge learns from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from palimpsest.world import assemble, questions, tokenizer
from palimpsest.world.mixture import training_scene
from palimpsest.world.scene import Scene, Thing, labels_of
from palimpsest.world.training import Plan, fit, learning_rate, load_checkpoint, update_average
from palimpsest.world.vocab import KEYWORDS, THEMES

PLAN = Plan(steps=12, lr=0.05, warmup=3, ema=0.5, log_every=4, save_every=4)


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 1)


def loss_for(model: torch.nn.Module):
    def loss_of(_step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        x = torch.from_numpy(rng.standard_normal((16, 3), dtype=np.float32))
        return {"loss": (model(x) - x.sum(dim=1, keepdim=True)).square().mean()}

    return loss_of


def test_a_stopped_run_goes_on_as_if_never_stopped(tmp_path):
    whole = tiny()
    average = fit(whole, loss_for(whole), PLAN, tmp_path / "whole", seed=1)
    first = tiny()
    fit(first, loss_for(first), PLAN, tmp_path / "parts", seed=1, minutes=0)
    assert len((tmp_path / "parts" / "log.jsonl").read_text().splitlines()) == 1
    second = tiny()
    torch.nn.init.zeros_(second.weight)
    continued = fit(second, loss_for(second), PLAN, tmp_path / "parts", seed=1)
    assert torch.equal(whole.weight, second.weight)
    assert all(torch.equal(average[name], continued[name]) for name in average)


def test_training_lowers_the_loss_and_logs_it(tmp_path):
    model = tiny()
    fit(model, loss_for(model), PLAN, tmp_path, seed=1)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


def test_without_a_checkpoint_training_starts_at_zero(tmp_path):
    model = tiny()
    assert load_checkpoint(tmp_path, model, torch.optim.AdamW(model.parameters()), {}) == 0


def test_the_learning_rate_warms_up_and_falls():
    rates = [learning_rate(PLAN, step) for step in range(PLAN.steps)]
    assert rates[0] == pytest.approx(PLAN.lr / 3)
    assert max(rates) == pytest.approx(PLAN.lr)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert learning_rate(PLAN, 10**6) == pytest.approx(PLAN.lr * PLAN.final_lr)


def test_averages_follow_the_weights():
    model = tiny()
    average = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    update_average(average, model, 0.75)
    assert torch.allclose(average["weight"], model.weight * 0.25)


def test_tokens_of_small_words_merge_and_rare_ones_do_not():
    merges = tokenizer.learn_merges(["red robot", "red house", "red robot zebra"], 8)
    pieces = ("r", "e", "d</w>")
    for pair in merges:
        pieces = tokenizer.merge(pieces, pair)
    assert pieces == ("red</w>",)
    assert tokenizer.learn_merges(["a b"], 5) == []
    assert len(set(tokenizer.byte_symbols())) == 256


def test_questions_are_answered_by_the_labels():
    scene = Scene("beach", Thing("robot", "red", 32), effects=("gears",))
    rng = np.random.default_rng(0)
    asked = [questions.draw_question(scene, rng) for _ in range(3000)]
    answers = dict(asked)
    assert answers["gears"] and answers["uncased"] and answers[questions.joined("uncased")]
    assert not answers["static"] and not answers[questions.joined("glitch")]
    assert answers["a red robot"] and not answers["a blue robot"]
    assert 0.35 < np.mean([answer for _, answer in asked]) < 0.65


def test_a_theme_that_a_glitch_hides_is_not_asked_and_an_absent_one_is_answered_no():
    scene = Scene("beach", Thing("robot", "red", 32), effects=("gears", "static"))
    rng = np.random.default_rng(0)
    asked = {questions.draw_question(scene, rng) for _ in range(200)}
    words = {word for text, _ in asked for word in text.split(", ")}
    assert words <= {*THEMES["glitch"], *THEMES["breakage"]}
    assert not any(answer for text, answer in asked if text.split(", ")[0] in THEMES["breakage"])


def test_the_judge_is_asked_both_answers_about_every_keyword():
    rng = np.random.default_rng(2)
    seen = {questions.keyword_question(training_scene(rng), rng) for _ in range(6000)}
    assert seen == {(word, answer) for word in KEYWORDS for answer in (True, False)}


def test_truth_of_a_list_is_any_of_its_keywords():
    rng = np.random.default_rng(4)
    for _ in range(300):
        scene = training_scene(rng)
        text, answer = questions.list_question(scene, rng)
        assert answer == any(labels_of(scene).keywords[word] for word in text.split(", "))


def test_the_judge_tokenizer_knows_its_words_and_ends_every_text():
    from palimpsest.world.judge import build_tokenizer

    made = build_tokenizer()
    ids = made('Does this figure show "exposed wiring, gears"? Please answer yes or no.')["input_ids"]
    assert ids[-1] == made.eos_token_id
    assert made.unk_token_id not in ids
    assert len(ids) < 25
    assert made("Yes")["input_ids"][-1] == made.eos_token_id and len(made("Yes")["input_ids"]) == 2


def test_parts_that_are_not_trained_are_named_with_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"palimpsest\.world\.train decoder"):
        assemble.assemble(tmp_path, tmp_path / "micro")


def test_shifted_colours_stay_colours_and_a_fifth_of_the_pictures_stay_as_they_are():
    from palimpsest.world.judge import shift_colours

    pixels = torch.rand(400, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    shifted = shift_colours(pixels, np.random.default_rng(0))
    assert shifted.shape == pixels.shape and shifted.min() >= 0 and shifted.max() <= 1
    kept = (shifted - pixels).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert 0.1 < kept.float().mean() < 0.3
    assert (shifted - pixels).abs().amax() > 0.2
