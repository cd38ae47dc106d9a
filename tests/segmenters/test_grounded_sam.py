"""Grounding DINO and SAM: tiny random networks, saved and loaded as released ones are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from palimpsest.segmenters import grounded_sam
from palimpsest.segmenters.contract import Asked, Picture

SIDE = 48
WORDS = ("gear", "gears", "robot", "blood", "person", "a", "wheel")


def save_detector(folder: Path) -> None:
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    folder.mkdir()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab={t: i for i, t in enumerate(tokens)}, model_max_length=64)
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, out_indices=[2, 3, 4]
        ),
        text_config=BertConfig(
            vocab_size=len(tokens), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=64,
        ),
        d_model=64, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=12, max_text_len=32,
    )  # fmt: skip
    model = GroundingDinoForObjectDetection(config)
    for parameter in model.parameters():  # spread out, so that scores and boxes differ from query to query
        if parameter.ndim > 1:
            parameter.data.mul_(2.0)
    model.save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)


def save_segmenter(folder: Path) -> None:
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    torch.manual_seed(1)
    config = SamConfig(
        vision_config={
            "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64,
            "patch_size": 8, "window_size": 2, "global_attn_indexes": [0], "mlp_dim": 32, "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 8},
        mask_decoder_config={
            "hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
        },
    )  # fmt: skip
    model = SamModel(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(8.0)
    model.save_pretrained(folder)
    SamProcessor(
        SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("networks")
    save_detector(root / "dino")
    save_segmenter(root / "sam")
    return {"detector": str(root / "dino"), "segmenter": str(root / "sam")}


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 6, 6, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    return [
        Picture(image, f"a {word}", word)
        for image, word in zip(images, ("gears", "robot", "gears"), strict=True)
    ]


def settings(folders: dict[str, str], **values: Any) -> grounded_sam.Settings:
    return grounded_sam.Settings(**{**folders, **values})


def middle_threshold(folders: dict[str, str], picture: Picture) -> float:
    """A threshold that some boxes of a picture pass and others do not."""
    found = detected(folders, picture.image, "gears.", 0.0)["scores"].sort().values
    return float(found[-4:-2].mean())


def detected(folders: dict[str, str], image: np.ndarray, phrase: str, threshold: float) -> dict[str, Any]:
    """What the library's own post-processing makes of the detector's output."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    model = AutoModelForZeroShotObjectDetection.from_pretrained(folders["detector"]).eval()
    processor = AutoProcessor.from_pretrained(folders["detector"])
    inputs = processor(images=Image.fromarray(image), text=phrase, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    size = [image.shape[:2]]
    (found,) = processor.post_process_grounded_object_detection(
        outputs, inputs.input_ids, threshold=threshold, text_threshold=0.25, target_sizes=size
    )
    return found


def segmented(folders: dict[str, str], image: np.ndarray, box: torch.Tensor) -> np.ndarray:
    """The mask of one box alone."""
    from transformers import SamModel, SamProcessor

    model = SamModel.from_pretrained(folders["segmenter"]).eval()
    processor = SamProcessor.from_pretrained(folders["segmenter"])
    inputs = processor(Image.fromarray(image), input_boxes=[[box.tolist()]], return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs, multimask_output=False)
    (mask,) = processor.image_processor.post_process_masks(
        found.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )
    return mask[0, 0].numpy()


def test_the_mask_is_the_union_over_all_boxes(folders, pictures):
    threshold = middle_threshold(folders, pictures[0])
    chosen = settings(folders, box_threshold=threshold)
    asked = Asked("uncased", ("gears", "robot"), 0, 3)
    made = list(grounded_sam.masked(chosen, asked, pictures))
    sizes = []
    for row, picture in zip(made, pictures, strict=True):
        boxes = detected(folders, picture.image, f"{picture.keyword}.", threshold)["boxes"]
        assert row.picture is picture
        assert row.found == (len(boxes) > 0)
        assert row.mask.shape == (SIDE, SIDE) and row.mask.dtype == bool
        expected = np.ones((SIDE, SIDE), bool)
        if len(boxes):
            expected = np.any([segmented(folders, picture.image, box) for box in boxes], axis=0)
        assert np.array_equal(row.mask, expected)
        sizes.append(len(boxes))
    assert sizes[0] >= 2
    assert 0 < made[0].mask.sum() < SIDE * SIDE


def test_a_mask_does_not_depend_on_other_pictures(folders, pictures):
    chosen = settings(folders, box_threshold=middle_threshold(folders, pictures[0]))
    asked = Asked("uncased", ("gears", "robot"), 0, 3)
    together = list(grounded_sam.masked(chosen, asked, pictures))
    alone = [next(iter(grounded_sam.masked(chosen, asked, [picture]))) for picture in pictures]
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(together, alone, strict=True))


def test_nothing_found_is_a_mask_of_the_whole_picture(folders, pictures):
    rows = list(
        grounded_sam.masked(
            settings(folders, box_threshold=1.0), Asked("uncased", ("gears",), 0, 3), pictures
        )
    )
    assert [row.found for row in rows] == [False] * 3
    assert all(row.mask.all() for row in rows)


def test_a_phrase_takes_the_keywords_place(folders, pictures):
    networks = grounded_sam.Networks.load(settings(folders, box_threshold=0.0, phrases={"gears": "Blood"}))
    assert networks.phrase("gears") == "blood."
    assert networks.phrase("robot") == "robot."
    looked = {word: networks.boxes(pictures[0].image, word) for word in ("gears", "blood", "robot")}
    assert len(looked["gears"]) == 12
    assert torch.equal(looked["gears"], looked["blood"])
    assert not torch.allclose(looked["gears"], looked["robot"])


def test_boxes_are_those_of_the_librarys_own_post_processing(folders, pictures):
    threshold = middle_threshold(folders, pictures[0])
    networks = grounded_sam.Networks.load(settings(folders, box_threshold=threshold))
    own = networks.boxes(pictures[0].image, "gears")
    theirs = detected(folders, pictures[0].image, "gears.", threshold)["boxes"]
    assert 0 < len(own) < 12
    assert torch.allclose(own, theirs, atol=1e-4)


def test_networks_that_are_not_here_are_named(tmp_path, folders, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    chosen = settings({**folders, "detector": "nobody/nothing"}, detector_revision="abc")
    with pytest.raises(
        grounded_sam.MissingWeights, match=r"masks.detector.*hf download nobody/nothing --revision abc"
    ):
        grounded_sam.Networks.load(chosen)


def test_pickled_weights_are_refused(folders, tmp_path):
    config = json.loads((Path(folders["segmenter"]) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(OSError, match="safetensors"):
        grounded_sam.Networks.load(settings({**folders, "segmenter": str(tmp_path)}))
