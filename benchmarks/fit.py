"""Fitting a method the way its official code does it, against ours: the same updates, side by side in one process.

    OMP_NUM_THREADS=2 python benchmarks/fit.py
    OMP_NUM_THREADS=2 python benchmarks/fit.py au uce --model models/micro/stable-diffusion --json benchmarks/results/fit.json
    python benchmarks/fit.py --quick          does it work at all? (its ratios mean little)

The official ways are in benchmarks/official/, one module per method. Both ways are given the same draws, settings, threads and
float32 weights, and must leave the same change of the model: a way that computes something else fails here. Time is that of a whole
fit with a loaded model; processor time tells more on a machine that is busy with other things. With --json, figures of the cases that
were run replace those in the file."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import pkgutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import official
import torch
from official import Case, Outcome

from palimpsest.methods import registry
from palimpsest.methods.contract import Target, ThemeTarget
from palimpsest.params import load
from palimpsest.sampling.load import load_pipeline
from palimpsest.sampling.pipeline import Pipeline


def all_cases() -> list[Case]:
    """The cases of all modules of benchmarks/official."""
    names = sorted(info.name for info in pkgutil.iter_modules(official.__path__))
    modules = [importlib.import_module(f"official.{name}") for name in names]
    return [case for module in modules for case in getattr(module, "CASES", ())]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted({case.method for case in all_cases()})
    parser.add_argument(
        "methods", nargs="*", help=f"which methods; all when none is given: {', '.join(known)}"
    )
    parser.add_argument("--model", help="a diffusers folder (default: that of params.yaml)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each way; the fastest counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--batching", action="store_true", help="also what a UNet evaluation costs alone and in a batch"
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter updates")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    unknown = set(given.methods) - set(known)
    if unknown:
        parser.error(f"no official way of {sorted(unknown)}; there are {known}")
    return given


def timed(make: Callable[[], Outcome], repeat: int, device: Any) -> tuple[float, float, Outcome]:
    """The fewest seconds of `repeat` runs, the fewest of processor time, and what the last one left."""

    def clock() -> float:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    seconds, processor, outcome = math.inf, math.inf, Outcome({})
    for _ in range(repeat):
        began, worked = clock(), time.process_time()
        outcome = make()
        seconds, processor = min(seconds, clock() - began), min(processor, time.process_time() - worked)
    return seconds, processor, outcome


def batching(pipeline: Pipeline, size: int = 32) -> dict[str, float]:
    """Processor milliseconds of one sample's UNet evaluation, alone and in a batch, plainly and with what a framework offers for speed.

    Latents that are drawn together cannot be cheaper than this allows, whatever else is saved.
    """
    config, unet = pipeline.unet.config, pipeline.unet

    def each(network: Any, count: int) -> float:
        shown = torch.zeros(
            count, config.in_channels, config.sample_size, config.sample_size, device=pipeline.device
        )
        texts = torch.zeros(count, 77, config.cross_attention_dim, device=pipeline.device)
        seconds = []
        with torch.no_grad():
            for _ in range(4):
                began = time.process_time()
                for _ in range(max(1, size // count)):
                    network(shown, 1, texts)
                seconds.append((time.process_time() - began) / max(1, size // count) / count)
        return round(1e3 * min(seconds), 2)

    found = {"alone": each(unet, 1), "together": each(unet, size)}
    found["together, channels last"] = each(unet.to(memory_format=torch.channels_last), size)
    unet.to(memory_format=torch.contiguous_format)
    found["together, compiled"] = each(torch.compile(unet), size)
    return found


def distance(first: Outcome, second: Outcome, pipeline: Pipeline) -> float:
    """Distance of two changes of the model over the size of the second (Frobenius, all tensors together)."""
    if set(first.tensors) != set(second.tensors):
        raise SystemExit(
            f"other tensors were changed: {sorted(set(first.tensors) ^ set(second.tensors))[:5]}"
        )
    model = {**dict(pipeline.unet.named_parameters()), **dict(pipeline.text_encoder.named_parameters())}
    base = {**model, **second.start}

    def norm(one: dict[str, Any], other: dict[str, Any]) -> float:
        return math.sqrt(
            sum(float((one[n].cpu() - other[n].cpu()).double().square().sum()) for n in second.tensors)
        )

    return norm(first.tensors, second.tensors) / norm(second.tensors, base)


def compare(case: Case, pipeline: Pipeline, target: Target, given: argparse.Namespace) -> dict[str, Any]:
    """Run both ways of one case, print them, and give the figures."""
    changes = {**case.settings, **(case.quick if given.quick else {})}
    settings, module = registry.settings(case.method, case.preset, changes), registry.get(case.method)
    data = case.data(target)

    def ours() -> Outcome:
        if case.ours is not None:
            return case.ours(pipeline, target, data, settings, given.seed)
        artifact = module.fit(pipeline, target, data, settings, given.seed)
        return Outcome(dict(artifact.tensors), artifact.meta["losses"])

    slow, slow_work, expected = timed(
        lambda: case.run(pipeline, target, data, settings, given.seed), given.repeat, pipeline.device
    )
    fast, fast_work, found = timed(ours, given.repeat, pipeline.device)
    off = distance(found, expected, pipeline)
    losses = max((abs(a / b - 1) for a, b in zip(found.losses, expected.losses, strict=True)), default=0.0)
    reached = "reached" if slow / fast >= case.goal else "MISSED"
    print(
        f"{case.name}: official way {slow:.2f} s, ours {fast:.2f} s, ratio {slow / fast:.2f} (goal {case.goal:g}: {reached})"
    )
    print(
        f"  processor time: official way {slow_work:.2f} s, ours {fast_work:.2f} s, ratio {slow_work / fast_work:.2f}"
    )
    print(
        f"  distance of the changes {off:.1e}, of the losses {losses:.1e}; official way: {case.does}",
        flush=True,
    )
    if not off <= case.tolerance:
        raise SystemExit(
            f"{case.name}: the changes differ by {off:.1e} of their size, more than {case.tolerance}"
        )
    return {
        "settings": changes,
        "official_seconds": round(slow, 3),
        "ours_seconds": round(fast, 3),
        "ratio": round(slow / fast, 2),
        "official_processor_seconds": round(slow_work, 3),
        "ours_processor_seconds": round(fast_work, 3),
        "ratio_of_processor_time": round(slow_work / fast_work, 2),
        "goal": case.goal,
        "distance_of_changes": off,
        "distance_of_losses": losses,
        "official_way": case.does,
        "device": str(pipeline.device),
        "threads": torch.get_num_threads(),
        "quick": given.quick,
    }


def main() -> None:
    given = arguments()
    params = load("params.yaml")
    model = params.model if given.model is None else params.model.model_copy(update={"path": given.model})
    pipeline = load_pipeline(model)
    themes = tuple(ThemeTarget(n, tuple(t.detailed), t.safe) for n, t in params.themes.items())
    target = Target(themes, tuple(params.retain))
    with torch.no_grad():  # the first evaluation pays for memory and libraries
        side, config = pipeline.unet.config.sample_size, pipeline.unet.config
        shown = torch.zeros(2, config.in_channels, side, side, device=pipeline.device)
        pipeline.unet(shown, 1, torch.zeros(2, 77, config.cross_attention_dim, device=pipeline.device))
    figures: dict[str, Any] = {}
    for case in all_cases():
        if not given.methods or case.method in given.methods:
            figures[case.name] = {"model": model.path, **compare(case, pipeline, target, given)}
    if given.batching:
        figures["batching"] = {"ratio": 0.0, **batching(pipeline)}
        found = figures["batching"]
        found["ratio"] = round(found["alone"] / found["together"], 2)
        print(f"one evaluation, milliseconds of processor time: {found}")
    if given.json:
        kept = json.loads(given.json.read_text(encoding="utf-8")) if given.json.is_file() else {}
        given.json.write_text(json.dumps({**kept, **figures}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: figure["ratio"] for name, figure in figures.items()}))


if __name__ == "__main__":
    main()
