"""A byte-pair tokenizer of CLIP's kind, learnt from the world's own captions."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from palimpsest.world.captions import training_example

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
VOCABULARY = 660
"""Small on purpose: 512 byte symbols, two special tokens, and so few merges that rarer words stay in pieces."""


def corpus(count: int, seed: int) -> list[str]:
    """``count`` captions of the training mixture."""
    rng = np.random.default_rng([seed, 7])
    return [training_example(rng).text for _ in range(count)]


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE, in the order of OpenAI's vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in symbols:
            symbols[byte] = chr(256 + len(symbols) - len(printable))
    return [symbols[byte] for byte in [*printable, *(b for b in range(256) if b not in printable)]]


def learn_merges(texts: list[str], count: int) -> list[tuple[str, str]]:
    """The ``count`` most frequent pair merges over the words of ``texts`` (Sennrich et al. 2016, algorithm 1).

    Ties go to the alphabetically first pair, so the result depends on the texts only.
    """
    import re

    frequency: dict[str, int] = {}
    for text in texts:
        for word in re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower()):
            frequency[word] = frequency.get(word, 0) + 1
    words = {word: (*word[:-1], word[-1] + "</w>") for word in frequency}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: dict[tuple[str, str], int] = {}
        for word, pieces in words.items():
            for pair in itertools.pairwise(pieces):
                pairs[pair] = pairs.get(pair, 0) + frequency[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {word: merge(pieces, best) for word, pieces in words.items()}
    return merges


def merge(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """``pieces`` with every occurrence of ``pair`` joined."""
    out: list[str] = []
    index = 0
    while index < len(pieces):
        if pieces[index : index + 2] == pair:
            out.append(pieces[index] + pieces[index + 1])
            index += 2
        else:
            out.append(pieces[index])
            index += 1
    return tuple(out)


def build(seed: int = 0, captions: int = 20_000) -> CLIPTokenizer:
    """Learn the tokenizer; padding is the end token, as in Stable Diffusion v1."""
    from transformers import CLIPTokenizer

    symbols = byte_symbols()
    merges = learn_merges(corpus(captions, seed), VOCABULARY - 2 * len(symbols) - 2)
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *(a + b for a, b in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=LENGTH,
    )


def save(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the tokenizer for ``CLIPTokenizer.from_pretrained``, with vocab.json and merges.txt beside it."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
