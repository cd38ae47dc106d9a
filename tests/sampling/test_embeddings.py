"""Text embeddings: padding, truncation, cache."""

from __future__ import annotations

import copy

import pytest
import torch

from palimpsest.sampling import embeddings
from palimpsest.sampling.embeddings import encode, encode_cached, token_count, token_ids, warn_when_cut
from tests import tiny

LONG = "a red robot of static " * 20


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def test_prompts_are_padded_with_the_end_token(pipeline):
    start, end = pipeline.tokenizer.bos_token_id, pipeline.tokenizer.eos_token_id
    ids = token_ids(pipeline, ["", "a robot", LONG])
    assert ids.shape == (3, 77)
    assert ids[0].tolist() == [start] + [end] * 76
    assert ids[1, 3:].tolist() == [end] * 74
    assert end not in ids[2, :76].tolist()
    assert ids[2, 76] == end


def test_last_hidden_state_is_normed(pipeline):
    given = encode(pipeline, ["a robot"])
    assert given.shape == (1, 77, 32)
    assert not given.requires_grad
    # The final layer norm still has its initial weights, so every vector has mean 0 and variance 1.
    assert torch.allclose(given.mean(-1), torch.zeros(1, 77), atol=1e-5)
    assert torch.allclose(given.var(-1, unbiased=False), torch.ones(1, 77), atol=1e-3)


def test_batches_do_not_change_embeddings(pipeline):
    texts = ["a robot", "", "gears", "red house"]
    assert torch.allclose(encode(pipeline, texts, batch=2), encode(pipeline, texts), atol=1e-5)
    alone = torch.cat([encode_cached(pipeline, [text]) for text in texts])
    assert torch.equal(encode_cached(pipeline, texts[::-1]), alone.flip(0))


def test_nothing_to_encode_is_an_error(pipeline):
    with pytest.raises(ValueError, match="no prompts"):
        encode(pipeline, [])


def test_cache_follows_the_encoder_and_its_weights(pipeline):
    calls = []
    encoder = copy.deepcopy(pipeline.text_encoder)
    encoder.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    own = type(pipeline)(pipeline.unet, pipeline.vae, encoder, pipeline.tokenizer, pipeline.scheduler)
    first = encode_cached(own, ["a robot", "a robot", "gears"])
    encode_cached(own, ["gears"])
    assert calls == [1, 1]
    assert torch.equal(first[0], first[1])
    with torch.no_grad():
        encoder.final_layer_norm.bias.add_(1.0)
    assert torch.allclose(encode_cached(own, ["gears"])[0], first[2] + 1, atol=1e-5)
    other = own.with_weights("text_encoder", {"final_layer_norm.bias": torch.zeros(32)})
    assert torch.equal(encode_cached(other, ["gears"])[0], first[2])


def test_cache_is_bounded(pipeline, monkeypatch):
    monkeypatch.setattr(embeddings, "CACHED_PROMPTS", 3)
    given = encode_cached(pipeline, [f"robot {i}" for i in range(6)])
    assert given.shape == (6, 77, 32)
    assert len(embeddings._cache[pipeline.text_encoder][1]) == 3


def test_cut_concepts_are_announced(pipeline, caplog):
    assert token_count(pipeline, "a robot") == 2
    warn_when_cut(pipeline, "a robot", "sld")
    assert not caplog.records
    warn_when_cut(pipeline, LONG, "sld")
    assert "100 tokens, the last 25 are cut" in caplog.text
