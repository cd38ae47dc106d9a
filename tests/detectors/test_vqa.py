"""The judge against an independent computation of its score, on tiny real networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from palimpsest import specs
from palimpsest.detectors import released, vqa

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
QUESTIONS = {
    "theme/weather": "rain, snow",
    "keyword/rain": "rain",
    "keyword/snow": "snow",
    "text/weather/odd": "rain",
}


@pytest.fixture(scope="module")
def judge(released_folder: Path) -> vqa.VqaJudge:
    return vqa.load(specs.Detector(kind="vqa", path=str(released_folder), batch=2))


def probabilities(judge: vqa.VqaJudge, image: np.ndarray, text: str) -> tuple[float, float]:
    """P(Yes) and P(</s> | Yes), decoded step by step from the parts; shares no code with
    `ClipFlanT5.score`.
    """
    vision, language, tokenizer = judge.model.vision, judge.model.language, judge.model.tokenizer
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.tensor((image / 255 - mean) / std, dtype=torch.float32).permute(2, 0, 1)[None]
    first, _, second, _ = list(judge.model.project.parameters())
    bias_1, bias_2 = judge.model.project[0].bias, judge.model.project[2].bias
    with torch.no_grad():
        patches = vision(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
        hidden = torch.nn.functional.gelu(patches @ first.T + bias_1) @ second.T + bias_2
        chunks = [
            f"{SYSTEM} USER: ",
            f'\nDoes this figure show "{text}"? Please answer yes or no. ASSISTANT: ',
        ]
        ids = [torch.tensor(tokenizer.encode(chunk)) for chunk in chunks]
        assert all(chunk[-1] == 1 for chunk in ids)  # both keep </s>
        sequence = torch.cat([language.shared(ids[0]), hidden, language.shared(ids[1])])[None]
        encoded = language.encoder(inputs_embeds=sequence)
        start, yes = torch.tensor([[0]]), tokenizer.encode("Yes")[0]
        assert tokenizer.encode("Yes") == [yes, 1]
        one = language(encoder_outputs=encoded, decoder_input_ids=start).logits[0, -1].double().softmax(-1)
        both = torch.tensor([[0, yes]])
        two = language(encoder_outputs=encoded, decoder_input_ids=both).logits[0, -1].double().softmax(-1)
    return float(one[yes]), float(two[1])


def test_the_score_is_the_geometric_mean_of_yes_and_its_end(judge: vqa.VqaJudge, images: np.ndarray) -> None:
    scores = judge.score(images, QUESTIONS)
    for label, text in QUESTIONS.items():
        expected = [np.sqrt(np.prod(probabilities(judge, image, text))) for image in images]
        np.testing.assert_allclose(scores[label], expected, rtol=2e-4)


def test_scores_have_one_float_per_image_and_label(judge: vqa.VqaJudge, images: np.ndarray) -> None:
    scores = judge.score(images, QUESTIONS)
    assert list(scores) == list(QUESTIONS)
    assert all(values.dtype == np.float32 and values.shape == (5,) for values in scores.values())
    assert all(((values > 0) & (values < 1)).all() for values in scores.values())
    np.testing.assert_array_equal(scores["keyword/rain"], scores["text/weather/odd"])
    assert not np.allclose(scores["keyword/rain"], scores["keyword/snow"], rtol=1e-3)
    assert np.ptp(scores["keyword/rain"]) > 0


def test_a_score_depends_on_its_own_image_and_text_only(judge: vqa.VqaJudge, images: np.ndarray) -> None:
    together = judge.score(images, QUESTIONS)
    alone = judge.score(images[3:4], {"keyword/snow": "snow"})
    np.testing.assert_allclose(alone["keyword/snow"][0], together["keyword/snow"][3], rtol=1e-4)
    np.testing.assert_array_equal(judge.score(images, QUESTIONS)["theme/weather"], together["theme/weather"])


def test_the_image_is_encoded_once_for_all_questions(
    judge: vqa.VqaJudge, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    forward = judge.model.vision.forward
    monkeypatch.setattr(
        judge.model.vision, "forward", lambda *a, **k: seen.append(len(k["pixel_values"])) or forward(*a, **k)
    )
    judge.score(images, QUESTIONS)
    assert seen == [2, 2, 1]  # five images in batches of two


def test_no_images_give_no_scores_and_no_questions_are_an_error(
    judge: vqa.VqaJudge, images: np.ndarray
) -> None:
    assert judge.score(images[:0], QUESTIONS)["keyword/rain"].shape == (0,)
    with pytest.raises(ValueError, match="`questions` is empty"):
        judge.score(images, {})
    with pytest.raises(ValueError, match="uint8"):
        judge.score(images / 255, QUESTIONS)


def test_a_saved_judge_scores_the_same(judge: vqa.VqaJudge, images: np.ndarray, tmp_path: Path) -> None:
    judge.model.save(tmp_path / "judge")
    again = vqa.load(specs.Detector(kind="vqa", path=str(tmp_path / "judge")))
    for label, values in judge.score(images, QUESTIONS).items():
        np.testing.assert_allclose(again.score(images, QUESTIONS)[label], values, rtol=1e-4)


def test_identity_names_weights_and_definition(judge: vqa.VqaJudge, released_folder: Path) -> None:
    assert judge.identity() == {
        "detector": "vqa",
        "definition_id": "vqa/1",
        "path": str(released_folder),
        "revision": None,
        "dtype": "float32",
    }


def test_questions_are_the_projects() -> None:
    assert vqa.questions({"weather": ["rain", "snow"]}, {})["theme/weather"] == "rain, snow"
    assert released.WRAPPER.startswith(SYSTEM)
