"""CLIPScore on the micro world's CLIP against torchmetrics, and against the clip-score package's arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from palimpsest.metrics import clip_score, measuring

CLIP = str(Path(__file__).parents[2] / "models" / "micro" / "clip")
PROMPTS = ["a photo of a red lamp", "a blue house in the city", "a photo of a red lamp", "a robot " * 60]


@pytest.fixture(scope="module")
def measure() -> clip_score.ClipScore:
    return clip_score.load(clip_score.Settings(path=CLIP, batch=3))


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    smooth = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    return list(smooth)


def test_it_is_torchmetrics_clip_score(measure: clip_score.ClipScore) -> None:
    from torchmetrics.functional.multimodal import clip_score as reference
    from transformers import CLIPModel, CLIPProcessor

    class Features(CLIPModel):
        """torchmetrics 1.9 expects features as tensors; transformers 5 puts them in an output of several."""

        def get_image_features(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().get_image_features(*args, **kwargs).pooler_output

        def get_text_features(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().get_text_features(*args, **kwargs).pooler_output

    def loaded() -> tuple[object, object]:
        processor = CLIPProcessor(image_processor=measure.processor, tokenizer=measure.tokenizer)
        return Features.from_pretrained(CLIP).eval(), processor

    from palimpsest.world.render import render_all
    from palimpsest.world.scene import sample_scene

    rng = np.random.default_rng(8)
    images = list(render_all([sample_scene(rng, kind="lamp", colour="red", second=False) for _ in range(3)]))
    found = measure.measure(measuring.Pictures(images, ["a photo of a red lamp"] * 3))["clip_score"]
    for value, image in zip(found, images, strict=True):
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        expected = float(reference(tensor, "a photo of a red lamp", model_name_or_path=loaded).detach())
        assert value == pytest.approx(expected, abs=0.02)
    assert found.min() > 5  # torchmetrics clamps at 0


def test_it_is_what_clips_logits_say(measure: clip_score.ClipScore) -> None:
    """The benchmark's code averages logits_per_image, which is exp(logit_scale) times the cosine, 100 in the released model."""
    images = pictures()[:3]
    tokens = measure.tokenizer(PROMPTS[:3], padding=True, return_tensors="pt")
    pixels = measure.processor(images=images, return_tensors="pt")
    with torch.no_grad():
        logits = (
            measure.model(**tokens, **pixels).logits_per_image.diagonal() / measure.model.logit_scale.exp()
        )
    found = measure.measure(measuring.Pictures(images, PROMPTS[:3]))["clip_score"]
    assert found == pytest.approx(100 * logits.numpy(), abs=1e-3)


def test_a_picture_of_the_prompt_scores_higher_than_one_of_another(measure: clip_score.ClipScore) -> None:
    from palimpsest.world.render import render_all
    from palimpsest.world.scene import sample_scene

    rng = np.random.default_rng(4)
    asked = [("red", "lamp"), ("blue", "house"), ("green", "car"), ("yellow", "kite")]
    scenes = [sample_scene(rng, kind=kind, colour=colour, second=False) for colour, kind in asked]
    images = list(render_all(scenes))
    prompts = [f"a photo of a {colour} {kind}" for colour, kind in asked]
    own = measure.measure(measuring.Pictures(images, prompts))["clip_score"]
    other = measure.measure(measuring.Pictures(images, prompts[1:] + prompts[:1]))["clip_score"]
    assert (own > other).all()


def test_long_prompts_are_cut_and_batches_change_nothing(measure: clip_score.ClipScore) -> None:
    together = measure.measure(measuring.Pictures(pictures(), PROMPTS))["clip_score"]
    single = [
        measure.measure(measuring.Pictures([image], [prompt]))["clip_score"][0]
        for image, prompt in zip(pictures(), PROMPTS, strict=True)
    ]
    assert together == pytest.approx(single, abs=1e-3)


def test_its_scale_hangs_on_the_model_so_the_model_is_named(measure: clip_score.ClipScore) -> None:
    assert measure.identity()["weights"] == CLIP


def test_without_weights_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(measuring.MissingWeights, match=r"cannot be loaded .*hf download"):
        clip_score.load(clip_score.Settings(path=str(tmp_path / "nothing")))
