"""Vision-language judges of two families, tiny and with random weights, against logits computed step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from palimpsest import specs
from palimpsest.detectors import vlm

WORDS = ["does", "this", "figure", "show", "rain", "snow", "please", "answer", "or", "user", "assistant"]
ANSWERS = ["Yes", "yes", "YES", "No", "no"]
SIDE = 28
ASKED = {"theme/weather": "rain, snow", "keyword/rain": "rain", "text/weather/odd": "rain"}


def tokenizer(special: list[str]) -> Any:
    """Whole words and single characters, with the family's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<pad>", *special, *ANSWERS, *WORDS, *'"?.,:\n{}', *"abcdefghijklmnopqrstuvwxyz"]
    inner = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>")
    made.add_special_tokens({"additional_special_tokens": special})
    return made


TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llava(folder: Path) -> None:
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    words = tokenizer(["<image>"])
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=14,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(vocab_size=len(words), **TEXT),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
    )
    template = (
        "{% for m in messages %}user : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} assistant :"
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    save(LlavaForConditionalGeneration(config), processor, folder)


def qwen(folder: Path) -> None:
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    special = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
    words = tokenizer(special)
    start, image, end, video = words.convert_tokens_to_ids(special)
    config = Qwen2VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(words),
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
        },
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
    )
    template = (
        "{% for m in messages %}user : {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
        "{% endfor %} assistant :"
    )
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56),
        words,
        Qwen2VLVideoProcessor(),
        chat_template=template,
    )
    save(Qwen2VLForConditionalGeneration(config), processor, folder)


def save(model: Any, processor: Any, folder: Path) -> None:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    model.generation_config.repetition_penalty = 1.5  # must not reach the scores
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module", params=[llava, qwen], ids=["llava", "qwen2_vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param.__name__)
    request.param(place)
    return place


@pytest.fixture(scope="module")
def judge(folder: Path) -> vlm.VlmJudge:
    return vlm.load(specs.Detector(kind="vlm", path=str(folder), batch=2))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)


def test_scores_are_the_shares_of_yes_and_no_in_the_raw_logits(
    judge: vlm.VlmJudge, pictures: np.ndarray
) -> None:
    found = judge.score(pictures, ASKED)
    assert list(found) == list(judge.labels(ASKED))
    words = judge.processor.tokenizer
    yes, no = (words.convert_tokens_to_ids(list(group)) for group in (ANSWERS[:3], ANSWERS[3:]))
    assert sorted(judge.yes) == sorted(yes) and sorted(judge.no) == sorted(no)
    for label, text in ASKED.items():
        prompt = judge.prompt(text)
        assert f'show "{text}"? Please answer Yes or No.' in prompt and prompt.endswith("assistant :")
        for i, picture in enumerate(pictures):
            inputs = judge.processor(text=[prompt], images=[Image.fromarray(picture)], return_tensors="pt")
            with torch.no_grad():
                shares = judge.model(**inputs).logits[0, -1].double().softmax(-1)
            p_yes, p_no = float(shares[yes].sum()), float(shares[no].sum())
            assert found[label][i] == pytest.approx(p_yes / (p_yes + p_no), rel=1e-3)
            assert found[f"p_yes/{label}"][i] == pytest.approx(p_yes, rel=1e-3)


def test_scores_hang_on_image_and_text(judge: vlm.VlmJudge, pictures: np.ndarray) -> None:
    found = judge.score(pictures, ASKED)
    np.testing.assert_array_equal(found["keyword/rain"], found["text/weather/odd"])
    assert not np.allclose(found["keyword/rain"], found["theme/weather"], atol=1e-4)
    assert np.ptp(found["p_yes/keyword/rain"]) > 0
    alone = judge.score(pictures[1:2], {"keyword/rain": "rain"})
    assert alone["keyword/rain"][0] == pytest.approx(found["keyword/rain"][1], rel=1e-3)
    assert judge.score(pictures[:0], ASKED)["keyword/rain"].shape == (0,)
    with pytest.raises(ValueError, match="`questions` is empty"):
        judge.score(pictures, {})


def test_identity_names_family_question_and_tokens(judge: vlm.VlmJudge, folder: Path) -> None:
    found = judge.identity()
    assert found["family"] == json.loads((folder / "config.json").read_text())["model_type"]
    assert found["template"] == vlm.Settings().template
    assert set(found["yes"]) == set(ANSWERS[:3]) and set(found["no"]) == set(ANSWERS[3:])


def test_a_tokenizer_without_an_answer_is_refused(judge: vlm.VlmJudge) -> None:
    with pytest.raises(ValueError, match="no single token for 'maybe'"):
        vlm.answers(judge.processor.tokenizer, "maybe")


def test_the_size_of_images_can_be_pinned(tmp_path: Path, pictures: np.ndarray) -> None:
    qwen(tmp_path)
    large = pictures.repeat(4, axis=1).repeat(4, axis=2)
    seen = {}
    for pixels in (28 * 28, 56 * 56):
        judge = vlm.load(
            specs.Detector(kind="vlm", path=str(tmp_path), min_pixels=28 * 28, max_pixels=pixels)
        )
        inputs = judge.processor(
            text=[judge.prompt("rain")], images=[Image.fromarray(large[0])], return_tensors="pt"
        )
        seen[pixels] = len(inputs["pixel_values"])
    assert seen == {28 * 28: 4, 56 * 56: 16}


def test_a_model_with_one_size_takes_no_other(tmp_path: Path) -> None:
    llava(tmp_path)
    with pytest.raises(ValueError, match=r"fixed size .*'shortest_edge': 28"):
        vlm.load(specs.Detector(kind="vlm", path=str(tmp_path), max_pixels=784))
