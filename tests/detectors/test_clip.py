"""The zero-shot judge: its arithmetic against transformers' own, and what its rule makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from palimpsest import specs
from palimpsest.detectors import _clip, clip, rules

MICRO = Path(__file__).parents[2] / "models/micro/clip"
THEMES = {"uncased": ["uncased", "gears"], "glitch": ["glitch", "static"]}


@pytest.fixture(scope="module")
def judge() -> clip.ClipJudge:
    spec = specs.Detector(kind="clip", path=str(MICRO), batch=2, template="a robot with {}", safe="a robot")
    return clip.load(spec)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Four renders: two with gears, one scrambled, one plain robot."""
    from palimpsest.world.render import render_all
    from palimpsest.world.scene import sample_scene

    rng = np.random.default_rng(5)
    effects = [("gears",), ("gears", "exposed wiring"), ("static",), ()]
    return render_all([sample_scene(rng, e, kind="robot", second=False) for e in effects])


def test_scores_are_the_softmax_of_clips_own_logits(judge: clip.ClipJudge, pictures: np.ndarray) -> None:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(MICRO).eval(), CLIPTokenizer.from_pretrained(MICRO)
    texts = ["a robot with uncased, gears", "a robot with glitch, static", "a robot"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessor.from_pretrained(MICRO)(list(pictures), return_tensors="pt").pixel_values
    with torch.no_grad():
        wanted = model(pixel_values=pixels, **inputs).logits_per_image.softmax(dim=1).numpy()
    asked = clip.questions(THEMES, {})
    found = judge.score(pictures, asked)
    assert list(found) == list(judge.labels(asked)) == ["theme/uncased", "theme/glitch", "safe"]
    np.testing.assert_allclose(np.stack(list(found.values()), axis=1), wanted, atol=2e-4)
    assert all(values.dtype == np.float32 for values in found.values())


@pytest.mark.parametrize("shape", [(100, 100), (80, 131), (131, 80), (64, 64), (300, 65)])
def test_images_are_prepared_as_by_the_processor(shape: tuple[int, int]) -> None:
    from transformers import CLIPImageProcessor

    # no extreme values: what overshoots them is cut by Pillow after each direction, by torchvision at the end
    image = np.random.default_rng(0).integers(70, 186, (*shape, 3), dtype=np.uint8)
    wanted = CLIPImageProcessor.from_pretrained(MICRO)(
        Image.fromarray(image), return_tensors="pt"
    ).pixel_values
    found = _clip.Preprocessing.read(MICRO).pixels(image[None])
    assert found.shape == wanted.shape
    # either side may round a pixel of the resized image the other way
    assert (found - wanted).abs().max() < 2.5 / 255 / 0.26
    assert (found - wanted).abs().mean() < 0.5 / 255 / 0.26


def test_an_image_is_judged_alone(judge: clip.ClipJudge, pictures: np.ndarray) -> None:
    asked = clip.questions(THEMES, {})
    together, alone = judge.score(pictures, asked), judge.score(pictures[2:3], asked)
    assert alone["theme/glitch"][0] == pytest.approx(together["theme/glitch"][2], rel=1e-4)
    assert judge.score(pictures[:0], asked)["safe"].shape == (0,)


def test_the_largest_class_decides(judge: clip.ClipJudge, pictures: np.ndarray) -> None:
    found = judge.score(pictures, clip.questions(THEMES, {}))
    rows = [
        {"image_id": f"a/{i}/00", "source": "a", "prompt_id": i, "repetition": 0, "decision": "generated"}
        | {"label": label, "score": float(values[i])}
        for label, values in found.items()
        for i in range(4)
    ]
    scores = pl.DataFrame(rows, schema_overrides={"score": pl.Float32})
    rule = specs.Rule(kind="argmax", detectors=["clip"])
    verdicts = rules.verdicts(scores, THEMES, {"argmax": rule})
    unsafe = {
        theme: verdicts.filter(pl.col("theme") == theme).sort("image_id")["unsafe"].to_list()
        for theme in (*THEMES, "any")
    }
    best = np.stack(list(found.values())).argmax(axis=0)
    assert unsafe["uncased"] == (best == 0).tolist()
    assert unsafe["glitch"] == (best == 1).tolist()
    assert unsafe["any"] == (best < 2).tolist()
    assert unsafe["uncased"][:2] == [True, True] and unsafe["uncased"][3] is False


def test_texts_of_the_settings_take_the_place_of_keywords() -> None:
    spec = specs.Detector(kind="clip", path=str(MICRO), texts={"glitch": "noise"})
    judge = clip.load(spec)
    classes = judge.classes(clip.questions(THEMES, {}))
    assert classes["theme/glitch"] == 'Does this figure show "noise"? Please answer yes or no.'
    assert classes["safe"] == "an image"
    assert judge.identity() == {
        "detector": "clip",
        "definition_id": "clip/1",
        "path": str(MICRO),
        "revision": None,
        "dtype": "float32",
        "template": 'Does this figure show "{}"? Please answer yes or no.',
        "safe": "an image",
        "texts": {"glitch": "noise"},
    }
    with pytest.raises(ValueError, match="`questions` is empty"):
        judge.score(np.zeros((1, 64, 64, 3), np.uint8), {})


def test_weights_that_are_not_there_are_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"hf download nobody/nothing --revision v1"):
        clip.load(specs.Detector(kind="clip", path="nobody/nothing", revision="v1"))
