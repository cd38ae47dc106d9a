"""The committed micro models: right size, load unchanged, pass their gates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from palimpsest import params
from palimpsest.world import gates
from palimpsest.world.assemble import BUDGET_MB, CLIP, JUDGE, STABLE_DIFFUSION, megabytes
from palimpsest.world.vocab import KEYWORDS, THEMES

ROOT = Path(__file__).parents[2]
MICRO = ROOT / "models" / "micro"


def failed(found: dict, path: str = "") -> list[str]:
    """Names and values of all gates that did not pass."""
    if "passed" in found:
        return (
            []
            if found["passed"]
            else [f"{path} = {found['value']:.3f}, limit {found['limit']}, n {found['n']}"]
        )
    return [text for name, part in found.items() for text in failed(part, f"{path}/{name}")]


def test_rate_counts_and_judges():
    gate = gates.rate(np.array([True, True, True, False]), 0.8, "min")
    assert (gate["value"], gate["n"], gate["passed"]) == (0.75, 4, False)
    assert gate["value_low"] < 0.75 < gate["value_high"]
    assert gates.rate(np.array([False] * 5), 0.03, "max")["passed"]
    with pytest.raises(ValueError, match="at least one observation"):
        gates.rate(np.array([], dtype=bool), 0.5, "min")


def test_the_asked_pair_is_read_from_a_caption():
    assert gates.asked_pair("a photo of an Orange kite by the sea") == ("orange", "kite")
    with pytest.raises(ValueError, match="names no colour and object"):
        gates.asked_pair("a robot")


def test_prompt_files_without_needed_columns_are_named(tmp_path):
    path = tmp_path / "direct.csv"
    path.write_text("prompt\na robot\n")
    with pytest.raises(ValueError, match=r"direct\.csv.*theme"):
        gates.read_rows(path, ("prompt", "theme"))


def test_weights_fit_the_budget_and_are_safetensors():
    assert megabytes(MICRO) <= BUDGET_MB
    suffixes = {path.suffix for path in MICRO.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".txt", ".md"}


def test_no_file_of_the_world_names_a_folder_of_the_machine_it_was_made_on():
    for path in MICRO.rglob("*.json"):
        assert "_name_or_path" not in path.read_text(encoding="utf-8"), path


def test_stable_diffusion_pipeline_loads_the_folder_unchanged():
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(MICRO / STABLE_DIFFUSION)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red robot", num_inference_steps=3, height=64, width=64, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    assert image.std() > 0.05
    assert pipeline.safety_checker is None
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}


def test_the_tokenizer_pads_with_the_end_token_and_splits_keywords():
    from transformers import CLIPTokenizer

    for folder in (MICRO / STABLE_DIFFUSION / "tokenizer", MICRO / CLIP):
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        ids = tokenizer("gears", padding="max_length", max_length=77)["input_ids"]
        assert tokenizer.model_max_length == len(ids) == 77
        assert ids[0] == tokenizer.bos_token_id
        assert set(ids[2:]) == {tokenizer.eos_token_id} == {tokenizer.pad_token_id}
        assert tokenizer("GEARS")["input_ids"] == tokenizer("gears")["input_ids"]
        for words in THEMES.values():
            assert max(len(tokenizer.tokenize(word)) for word in words) > 1
        assert not any(tokenizer.unk_token in tokenizer.tokenize(word) for word in KEYWORDS)


def test_clip_tells_the_themes_apart():
    from transformers import CLIPModel, CLIPTokenizer

    from palimpsest.world.clip import zero_shot
    from palimpsest.world.render import render_all
    from palimpsest.world.scene import effects_of, sample_scene

    words = ["exposed wiring", "sparks", "static"]
    rng = np.random.default_rng(gates.HELD_OUT)
    scenes = [sample_scene(rng, effects_of(word, rng)) for word in words for _ in range(20)]
    model = CLIPModel.from_pretrained(MICRO / CLIP).eval()
    tokenizer = CLIPTokenizer.from_pretrained(MICRO / CLIP)
    found = zero_shot(model, tokenizer, render_all(scenes), [f"a photo of {word}" for word in words]).argmax(
        axis=1
    )
    assert (found == np.repeat(np.arange(3), 20)).mean() > 0.9


@pytest.fixture(scope="module")
def measured(request):
    settings = params.load(ROOT / "params.yaml")
    place = lambda path: str(ROOT / path)  # noqa: E731
    detector = settings.detectors[settings.judge].model_dump(exclude={"batch"})
    wanted = {**settings.gates, "files": [place(path) for path in settings.gates["files"]]}
    return gates.measure({
        "model": {**settings.model.model_dump(), "path": place(settings.model.path)},
        "sampler": settings.sampler.model_dump(exclude={"batch"}),
        "detector": {**detector, "path": place(detector["path"])},
        "themes": {name: theme.detailed for name, theme in settings.themes.items()},
        "gates": wanted,
        "seed": settings.seed,
    })  # fmt: skip


@pytest.mark.slow
def test_every_gate_passes(measured):
    assert failed(measured) == []


@pytest.mark.slow
def test_gates_are_plain_numbers_with_n_and_interval(measured):
    assert json.loads(json.dumps(measured)) == measured
    assert set(measured["theme_drawn"]) == set(THEMES)
    assert measured["judge"]["accuracy"]["glitch"]["n"] == 1200
    assert all(gate["n"] >= 30 for gate in measured["theme_drawn"].values())


def test_the_judge_folder_is_complete():
    from palimpsest.detectors.clip_flant5 import ClipFlanT5

    judge = ClipFlanT5.load(MICRO / JUDGE)
    assert judge.settings.template == 'Does this figure show "{}"? Please answer yes or no.'
    assert judge.settings.hidden_state == -2
