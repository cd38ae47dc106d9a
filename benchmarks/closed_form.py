"""Seconds that a closed-form method takes at the size of Stable Diffusion v1.4, on the CPU, with random weights.

    OMP_NUM_THREADS=2 python benchmarks/closed_form.py
    OMP_NUM_THREADS=2 python benchmarks/closed_form.py uce/compvis2023 rece/official --repeat 3 --json figures.json

The text encoder has its true size (12 layers of width 768). The UNet has all its parts, but only the weights these methods read and
change, the keys and values of the 16 cross-attentions, are in memory: time does not depend on the rest. The tokenizer is the embedded
world's (ids below 660), which gives the same number of positions. The keywords are the 14 of params.yaml. An edit is what `fit` does
(encoding the keywords included) and `apply`. The last line printed is JSON."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from palimpsest.methods import registry
from palimpsest.methods.contract import Target, ThemeTarget, TrainingData
from palimpsest.params import load
from palimpsest.sampling.pipeline import Pipeline

UNET: dict[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 768,
}  # the rest are the defaults of the class
TEXT = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768, "max_position_embeddings": 77,
}  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "methods", nargs="*", default=["uce/compvis2023", "uce/diffusers2025", "rece/official"]
    )
    parser.add_argument("--repeat", type=int, default=1, help="edits of each method; the fastest counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args()


def checkpoint(folder: str, seed: int) -> Pipeline:
    """A pipeline of Stable Diffusion v1.4's shape. folder: a diffusers folder whose tokenizer is used."""
    from diffusers.models import UNet2DConditionModel
    from diffusers.schedulers import PNDMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(seed)
    words = CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer")
    ends = {
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    encoder = CLIPTextModel(CLIPTextConfig(**TEXT, **ends)).eval().requires_grad_(False)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
    for name, weight in list(unet.named_parameters()):
        if ".attn2.to_k." in name or ".attn2.to_v." in name:
            parent, _, leaf = name.rpartition(".")
            made = torch.nn.Parameter(torch.randn(weight.shape) * 0.03, requires_grad=False)
            setattr(unet.get_submodule(parent), leaf, made)
    return Pipeline(unet.eval(), None, encoder, words, PNDMScheduler())


def edit(pipeline: Pipeline, method: str, target: Target) -> tuple[float, float]:
    """Seconds of one fit and its application, and of processor time."""
    name, _, preset = method.partition("/")
    module, settings = registry.get(name), registry.settings(name, preset)
    began, worked = time.perf_counter(), time.process_time()
    artifact = module.fit(pipeline, target, TrainingData(), settings, 0)
    edited = module.apply(pipeline, artifact, target, settings)
    seconds = time.perf_counter() - began, time.process_time() - worked
    own = dict(edited.unet.named_parameters())
    if len(artifact.tensors) != 32 or not all(torch.equal(own[n], t) for n, t in artifact.tensors.items()):
        raise RuntimeError(f"{method} did not edit the 32 layers")
    return seconds


def main() -> None:
    given = arguments()
    params = load("params.yaml")
    began = time.perf_counter()
    pipeline = checkpoint(params.model.path, given.seed)
    loading = time.perf_counter() - began
    target = Target(tuple(ThemeTarget(n, tuple(t.detailed), t.safe) for n, t in params.themes.items()))
    edited = [p for n, p in pipeline.unet.named_parameters() if p.device.type != "meta"]
    figures: dict[str, Any] = {
        "threads": torch.get_num_threads(), "keywords": len(target.keywords), "layers": len(edited),
        "rows": sum(p.shape[0] for p in edited), "loading": round(loading, 2),
    }  # fmt: skip
    for method in given.methods:
        runs = [edit(pipeline, method, target) for _ in range(given.repeat)]
        seconds, processor = (round(min(column), 2) for column in zip(*runs, strict=True))
        figures[method] = {"seconds": seconds, "processor_seconds": processor}
        print(
            f"{method}: {seconds} s for {figures['keywords']} keywords, {processor} s of processor time",
            flush=True,
        )
    print(f"loading: {figures['loading']} s, {figures['threads']} threads")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
