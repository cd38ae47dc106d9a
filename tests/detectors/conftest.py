"""Tiny judges with random weights, real in every part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORDS = [
    "does",
    "this",
    "figure",
    "show",
    "rain",
    "snow",
    "please",
    "answer",
    "yes",
    "or",
    "no",
    "user",
    "assistant",
]
WIDTH, PIXELS = 32, 32


def tiny_tokenizer(folder: Path) -> Any:
    """A unigram tokenizer of T5's kind: </s> at the end, fast, loadable by AutoTokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("Yes", -1.0), ("▁Yes", -1.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS] + [
        (letter, -6.0) for letter in "▁abcdefghijklmnopqrstuvwxyz\"'?.,:"
    ]
    inner = Tokenizer(models.Unigram(pieces, unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=2048
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_parts(seed: int = 0) -> tuple[Any, Any]:
    """A CLIP vision tower and a FLAN-style T5 (gated GELU, output layer of its own, unscaled)."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=PIXELS,
            patch_size=8,
        )
    )
    config = T5Config(
        vocab_size=64,
        d_model=WIDTH,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    language = T5ForConditionalGeneration(config)
    language.lm_head.weight = torch.nn.Parameter(torch.randn(64, WIDTH) * 0.3)
    for parameter in language.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return vision.eval(), language.eval()


@pytest.fixture(scope="session")
def released_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the released format: sharded safetensors, LLaVA-style names, companions in
    subfolders.
    """
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip-flant5-tiny")
    vision, language = tiny_parts()
    vision.save_pretrained(folder / "vision_tower", safe_serialization=True)
    tiny_tokenizer(folder / "tokenizer")
    state = {
        k: v.clone() for k, v in language.state_dict().items() if not k.endswith("coder.embed_tokens.weight")
    }
    torch.manual_seed(1)
    for name, shape in {
        "0.weight": (WIDTH, 24),
        "0.bias": (WIDTH,),
        "2.weight": (WIDTH, WIDTH),
        "2.bias": (WIDTH,),
    }.items():
        state[f"mm_projector.{name}"] = torch.randn(shape) * 0.3
    state["vision_tower.vision_tower.vision_model.pre_layrnorm.bias"] = torch.zeros(24)
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: state[key] for key in keys}, folder / file, metadata={"format": "pt"})
    weight_map = {key: file for file, keys in shards.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    config = language.config.to_dict() | {
        "tie_word_embeddings": False,
        "model_type": "clip_t5",
        "architectures": ["CLIPT5ForConditionalGeneration"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 24,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    }
    config.pop("scale_decoder_outputs", None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Five random images, uint8 [5, 32, 32, 3]."""
    return np.random.default_rng(0).integers(0, 256, (5, PIXELS, PIXELS, 3), dtype=np.uint8)
