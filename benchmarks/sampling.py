"""Images per second of the project's sampling loop against diffusers making one image at a time, in one run.

    python benchmarks/sampling.py models/micro/stable-diffusion --resolution 64

Both sides use the same checkpoint, prompts, seeds, sampler, steps, guidance and number of threads. The images
are compared, so that a faster loop that draws something else cannot win. The last line printed is JSON."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from palimpsest.params import Model, Sampler
from palimpsest.sampling import schedulers
from palimpsest.sampling.load import load_pipeline
from palimpsest.sampling.loop import Request, generate, latent_shape
from palimpsest.sampling.noise import initial_noise
from palimpsest.sampling.pipeline import Pipeline

PROMPTS = (
    "a red robot on the beach",
    "a blue house at night",
    "a robot in a meadow",
    "a green lamp",
    "a tree in the city",
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a diffusers folder")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--sampler", default="dpmsolver++", choices=list(schedulers.KINDS))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=128, help="images made by the loop")
    parser.add_argument("--single-images", type=int, default=16, help="images made one at a time")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args()


def timed(make: Callable[[int], list[np.ndarray]], count: int) -> tuple[float, list[np.ndarray]]:
    """Images per second of `make(count)` after a warm-up of the same batch shape, and the images."""
    make(min(count, 2))
    began = time.perf_counter()
    images = make(count)
    return count / (time.perf_counter() - began), images


def requests(count: int) -> list[Request]:
    return [Request(str(i), PROMPTS[i % len(PROMPTS)], i) for i in range(count)]


def ours(pipeline: Pipeline, sampler: Sampler, resolution: int) -> Callable[[int], list[np.ndarray]]:
    return lambda count: [
        g.image for g in generate(pipeline, requests(count), sampler, resolution) if g.image is not None
    ]


def diffusers_pipeline(pipeline: Pipeline, sampler: Sampler) -> tuple[Any, dict[str, Any]]:
    """diffusers' own pipeline of the same parts, and what it is called with besides prompts and latents."""
    from diffusers import StableDiffusionPipeline

    parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder", "tokenizer")}
    theirs: Any = StableDiffusionPipeline(
        **parts,
        scheduler=schedulers.build(sampler.name, pipeline.scheduler.config, sampler.steps),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    return theirs, {
        "num_inference_steps": sampler.steps,
        "guidance_scale": sampler.guidance,
        "output_type": "np",
    }


def one_at_a_time(pipeline: Pipeline, sampler: Sampler, resolution: int) -> Callable[[int], list[np.ndarray]]:
    """diffusers as its documentation shows it, with the latents of the project's seeds."""
    theirs, call = diffusers_pipeline(pipeline, sampler)
    shape = latent_shape(pipeline, resolution)

    def make(count: int) -> list[np.ndarray]:
        images = []
        for request in requests(count):
            noise = initial_noise(request.seed, shape)[None].to(pipeline.device)
            made = theirs(request.prompt, latents=noise, height=resolution, width=resolution, **call)
            images.append((made.images[0] * 255).round().astype(np.uint8))
        return images

    return make


def main() -> None:
    options = arguments()
    pipeline = load_pipeline(Model(path=options.model, resolution=options.resolution))
    common = {
        "name": options.sampler,
        "steps": options.steps,
        "guidance": options.guidance,
        "batch": options.batch,
    }
    full, half = Sampler(**common), Sampler(**common, dtype="bfloat16")
    single_rate, single = timed(one_at_a_time(pipeline, full, options.resolution), options.single_images)
    full_rate, batched = timed(ours(pipeline, full, options.resolution), options.images)
    half_rate, rounded = timed(ours(pipeline, half, options.resolution), options.images)
    shared = min(len(single), len(batched))
    far = max(
        int(np.abs(a.astype(int) - b).max()) for a, b in zip(single[:shared], batched[:shared], strict=True)
    )
    off = float(np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(batched, rounded, strict=True)]))
    figures = {
        "device": str(pipeline.device),
        "threads": torch.get_num_threads(),
        **common,
        "resolution": options.resolution,
        "diffusers_one_at_a_time_images_per_second": round(single_rate, 3),
        "loop_float32_images_per_second": round(full_rate, 3),
        "loop_bfloat16_images_per_second": round(half_rate, 3),
        "ratio_float32": round(full_rate / single_rate, 2),
        "ratio_bfloat16": round(half_rate / single_rate, 2),
        "bfloat16_over_float32": round(half_rate / full_rate, 2),
        "largest_difference_to_diffusers_of_255": far,
        "mean_difference_of_bfloat16_of_255": round(off, 3),
    }
    print(f"one image at a time, diffusers: {single_rate:8.2f} images/s")
    ratios = [rate / single_rate for rate in (full_rate, half_rate)]
    print(f"loop, float32, batches of {options.batch:3d}: {full_rate:8.2f} images/s  ({ratios[0]:.2f} times)")
    print(f"loop, bfloat16:                 {half_rate:8.2f} images/s  ({ratios[1]:.2f} times)")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
