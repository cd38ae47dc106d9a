"""How near the chip's limit images, updates and verdicts are, at the size of Stable Diffusion v1.4 (random weights) and in the micro world.

    python benchmarks/scale.py --json benchmarks/results/scale.json
    python benchmarks/scale.py --only true_size --batch 16

On a GPU: 512 x 512, 40 PNDM steps (41 guided evaluations), our loop in bfloat16. Without one: 128 x 128 in float32 with a few steps, from
which 40 are reckoned, and updates and judge on the micro world. The official way is diffusers, one image at a time in float32. A part
printed as MISSED missed its goal; goals are for a GPU of the H200's class and stay open elsewhere. The last line printed is JSON."""

from __future__ import annotations

import argparse
import copy
import gc
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
import true_size
import updates
from machine import fastest, peak_since, worked
from torch.utils.flop_counter import FlopCounterMode

import sampling as compared
from palimpsest.detectors import contract
from palimpsest.params import Sampler, load
from palimpsest.sampling import fast, schedulers
from palimpsest.sampling.load import load_pipeline
from palimpsest.sampling.loop import decode, generate, latent_shape
from palimpsest.sampling.noise import initial_noise
from palimpsest.sampling.pipeline import Pipeline
from palimpsest.steps.generations import encoded

STEPS = 40
PARTS = ("true_size", "micro", "updates", "judge")
GOALS = {"seconds_per_image": 0.19, "share_of_matmul_rate": 0.40, "over_official": 10.0, "over_batched": 1.5}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch", type=int, help="images at once (default: 32 on a GPU, 2 without)")
    parser.add_argument("--steps", type=int, help="PNDM steps that are run (default: 40 on a GPU, 2 without)")
    parser.add_argument("--compile", action="store_true", help="compile the blocks of the UNet (GPU)")
    parser.add_argument("--judge", help="weights of another judge than that of params.yaml")
    parser.add_argument("--json", type=Path, help="keep the figures here, by device")
    return parser.parse_args()


def operations(pipeline: Pipeline, side: int) -> tuple[float, float]:
    """Floating-point operations of one evaluation of the UNet for one image and branch, and of decoding one image."""
    shape = latent_shape(pipeline, side)
    latents = torch.randn(1, *shape, device=pipeline.device, dtype=pipeline.dtype)
    states = torch.randn(
        1, 77, pipeline.unet.config.cross_attention_dim, device=pipeline.device, dtype=pipeline.dtype
    )
    found = []
    with torch.no_grad():
        for work in (lambda: pipeline.unet(latents, 1, states), lambda: pipeline.vae.decode(latents)):
            with FlopCounterMode(display=False) as counter:
                work()
            found.append(float(counter.get_total_flops()))
    return found[0], found[1]


def through_the_loop(pipeline: Pipeline, sampler: Sampler, side: int, count: int) -> list[np.ndarray]:
    """Images as a cell makes them, PNG encoding included."""
    made = generate(pipeline, compared.requests(count), sampler, side)
    return [generation.image for generation, _ in encoded(made) if generation.image is not None]


def in_batches(pipeline: Pipeline, sampler: Sampler, side: int) -> Any:
    """diffusers' own pipeline with a batch of prompts, all of it in the dtype of `sampler`."""
    dtype = getattr(torch, sampler.dtype)
    half = replace(
        fast.cast(pipeline, sampler.dtype), text_encoder=copy.deepcopy(pipeline.text_encoder).to(dtype)
    )
    theirs, call = compared.diffusers_pipeline(half, sampler)
    shape = latent_shape(pipeline, side)

    def make(count: int) -> Any:
        asked = compared.requests(count)
        noise = torch.stack([initial_noise(r.seed, shape) for r in asked])
        noise = noise.to(pipeline.device, dtype)
        return theirs([r.prompt for r in asked], latents=noise, height=side, width=side, **call).images

    return make


def ways(pipeline: Pipeline, sampler: Sampler, side: int) -> dict[str, Any]:
    """Seconds per image of the three ways with `sampler.steps` steps, peak memory of each, and how far their pictures are apart."""
    official = sampler.model_copy(update={"dtype": "float32", "compile": False})
    found: dict[str, Any] = {}
    alone = compared.one_at_a_time(pipeline, official, side)
    batched = in_batches(pipeline, sampler, side)
    tried = {
        "official": (alone, 1, 1),
        "batched": (batched, sampler.batch, sampler.batch),
        "ours": (lambda n: through_the_loop(pipeline, sampler, side, n), sampler.batch, sampler.batch),
    }
    pictures = {}
    for name, (make, warm, count) in tried.items():
        peak = peak_since(pipeline.device)
        if (
            pipeline.device.type == "cuda"
        ):  # elsewhere an image takes so long that a first one is like any other
            make(warm)
        began = worked(pipeline.device)
        pictures[name] = make(count)
        seconds = (worked(pipeline.device) - began) / count
        found[name] = {"seconds_per_image": seconds, "peak_memory_mb": peak()}
        print(f"  {name}: {seconds:.3f} s per image of {sampler.steps} steps", flush=True)
    first = np.asarray(pictures["official"][0]).astype(int), np.asarray(pictures["ours"][0]).astype(int)
    found["largest_difference_to_official_of_255"] = int(np.abs(first[0] - first[1]).max())
    return found


def true_size_part(given: argparse.Namespace, tokenizer: str, device: str) -> dict[str, Any]:
    """Stable Diffusion v1.4: images, decoding, and shares of what the device can do."""
    cuda = device == "cuda"
    side, dtype = (512, "bfloat16") if cuda else (128, "float32")
    batch, steps = given.batch or (32 if cuda else 2), given.steps or (STEPS if cuda else 2)
    began = time.perf_counter()
    pipeline = true_size.build(tokenizer, device)
    print(f"built in {time.perf_counter() - began:.0f} s", flush=True)
    rate, full = (machine.matmul_rate(device, getattr(torch, name)) for name in (dtype, "float32"))
    evaluation, decoding = operations(pipeline, side)
    sampler = Sampler(name="pndm", steps=steps, guidance=7.5, dtype=dtype, batch=batch, compile=given.compile)
    found = ways(pipeline, sampler, side)
    ready = fast.prepared(pipeline, sampler)
    latents = torch.randn(batch, *latent_shape(pipeline, side), device=device)
    decode_seconds = fastest(lambda: decode(ready, latents), device, 5 if cuda else 1) / batch
    wanted, run = (schedulers.evaluations("pndm", n) for n in (STEPS, steps))
    for way in ("official", "batched", "ours"):
        seconds = found[way]["seconds_per_image"]
        # what is not decoding grows with the evaluations
        at_40 = seconds if run == wanted else (seconds - decode_seconds) * wanted / run + decode_seconds
        found[way]["seconds_per_image"], found[way]["seconds_as_run"] = round(at_40, 4), round(seconds, 4)
        work = 2 * wanted * evaluation + decoding
        against = full if way == "official" else rate
        found[way]["share_of_matmul_rate"] = round(work / at_40 / against, 3)
    return {
        **found,
        "side": side,
        "dtype": dtype,
        "batch": batch,
        "steps_run": steps,
        "form": asdict(fast.form(pipeline, sampler)),
        "tera_operations_per_evaluation": round(evaluation / 1e12, 4),
        "tera_operations_per_image": round((2 * wanted * evaluation + decoding) / 1e12, 2),
        "matmul_rate_tflops": {dtype: round(rate / 1e12, 3), "float32": round(full / 1e12, 3)},
        "copy_gb_per_second": round(machine.copy_bandwidth(device) / 1e9, 1),
        "seconds_to_decode_an_image": round(decode_seconds, 4),
        "share_of_matmul_rate_decoding": round(decoding / decode_seconds / rate, 3),
        "over_official": round(
            found["official"]["seconds_per_image"] / found["ours"]["seconds_per_image"], 2
        ),
        "over_batched": round(found["batched"]["seconds_per_image"] / found["ours"]["seconds_per_image"], 2),
    }


def micro_part(params: Any, device: str) -> dict[str, Any]:
    """The committed micro model: our loop against one image at a time, and what a cell spends on loading the model."""
    loading = fastest(lambda: load_pipeline(params.model, device=device), device, 2)
    pipeline = load_pipeline(params.model, device=device)
    side, sampler = params.model.resolution, params.sampler
    rate = machine.matmul_rate(device, torch.float32)
    evaluation, decoding = operations(pipeline, side)
    alone, count = compared.one_at_a_time(pipeline, sampler, side), 12
    single, batched = alone(2), through_the_loop(pipeline, sampler, side, sampler.batch)
    slow = count / fastest(lambda: alone(count), device, 2)
    fast_rate = sampler.batch / fastest(
        lambda: through_the_loop(pipeline, sampler, side, sampler.batch), device, 2
    )
    work = 2 * schedulers.evaluations(sampler.name, sampler.steps) * evaluation + decoding
    apart = max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(single, batched, strict=False))
    return {
        "official_seconds_per_image": round(1 / slow, 5),
        "seconds_per_image": round(1 / fast_rate, 5),
        "over_official": round(fast_rate / slow, 2),
        "most_that_the_rate_allows": round(rate / work / slow, 2),
        "matmul_rate_gflops": round(rate / 1e9, 1),
        "share_of_matmul_rate": round(work * fast_rate / rate, 3),
        "share_of_matmul_rate_official": round(work * slow / rate, 3),
        "largest_difference_of_255": apart,
        "batch": sampler.batch,
        "seconds_to_load": round(loading, 3),
        "loading_share_of_212_images": round(loading / (loading + 212 / fast_rate), 3),
    }


def judge_part(given: argparse.Namespace, params: Any, device: str) -> dict[str, Any]:
    """Images per second of the judge with one question per theme."""
    spec = params.detectors[params.judge]
    if given.judge:
        spec = spec.model_copy(update={"path": given.judge})
    judge = contract.find(spec.kind).load(spec, device)
    asked = {name: ", ".join(theme.detailed) for name, theme in params.themes.items()}
    side = params.model.resolution
    images = np.random.default_rng(0).integers(0, 256, (spec.batch, side, side, 3), dtype=np.uint8)
    seconds = fastest(lambda: judge.score(images, asked), device, 2)
    return {
        "judge": spec.path,
        "questions": len(asked),
        "seconds_per_image": round(seconds / spec.batch, 6),
    }


def told(name: str, value: float, low: bool, goals: bool) -> str:
    goal = GOALS[name]
    reached = value <= goal if low else value >= goal
    state = ("reached" if reached else "MISSED") if goals else "open here"
    return f"{name.replace('_', ' ')}: {value} (goal {goal:g}: {state})"


def main() -> None:
    given, params = arguments(), load("params.yaml")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cuda = device == "cuda"
    figures: dict[str, Any] = machine.described(device)
    print(f"{figures['device']}, {figures['threads']} thread(s)", flush=True)
    if "micro" in given.only:
        figures["micro"] = micro_part(params, device)
        print(json.dumps(figures["micro"]), flush=True)
    if "judge" in given.only:
        figures["judge"] = judge_part(given, params, device)
    if "updates" in given.only:
        print("updates:", flush=True)
        pipeline = true_size.build(params.model.path, device) if cuda else load_pipeline(params.model)
        side = 512 if cuda else params.model.resolution
        figures["updates"] = updates.measured(pipeline, params, small=not cuda, side=side)
        figures["updates_of"] = "Stable Diffusion v1.4" if cuda else "the micro world"
        del pipeline
        gc.collect()
    if "true_size" in given.only:
        part = figures["true_size"] = true_size_part(given, params.model.path, device)
        ours = {**part["ours"], **part}
        for name in GOALS:
            print(told(name, ours[name], name == "seconds_per_image", cuda))
    if given.json:
        kept = json.loads(given.json.read_text(encoding="utf-8")) if given.json.is_file() else {}
        name = f"{figures['device']}, {figures['threads']} thread(s)" if not cuda else figures["device"]
        kept[name] = {**kept.get(name, {}), **figures}
        given.json.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
