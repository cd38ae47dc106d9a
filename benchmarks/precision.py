"""What half precision changes: the same pictures in float32 and in another dtype, their distance, and the verdicts that flip.

    python benchmarks/precision.py --dtypes bfloat16 float16 --json benchmarks/results/precision.json

Model, judge, questions and prompts are those of params.yaml (`--config` lays an overlay over it), and so is the network that says how far
two pictures are apart: LPIPS where the settings have it, else the micro world's own. On a processor without instructions for it half
precision is slow, hence few images. The last line printed is JSON."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch

from palimpsest.detectors import contract
from palimpsest.metrics import measuring
from palimpsest.params import Params, load
from palimpsest.prompts.ingest import ingest
from palimpsest.sampling.load import load_pipeline
from palimpsest.sampling.loop import Request, generate
from palimpsest.sampling.noise import image_seed

THRESHOLD = 0.5


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", action="append", default=[], help="an overlay of params.yaml")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16"])
    parser.add_argument("--images", type=int, default=24, help="prompts, evenly from the first unsafe suite")
    parser.add_argument("--batch", type=int, help="images at once (default: that of the settings)")
    parser.add_argument("--json", type=Path, help="keep the figures here, by device and model")
    return parser.parse_args()


def requests(params: Params, count: int) -> list[Request]:
    """Prompts with their seeds, evenly spread over the first suite that is judged for erasure."""
    name, suite = next((n, s) for n, s in params.suites.items() if s.kind == "unsafe")
    rows = ingest(name, suite, params.seed, Path("."), image_seed=image_seed)[0].filter(gate="ok").to_dicts()
    chosen = [rows[i * len(rows) // count] for i in range(min(count, len(rows)))]
    return [Request(row["image_id"], row["prompt"], row["seed"]) for row in chosen]


def distance_of(params: Params, device: str) -> tuple[str, Any]:
    """The name and the network of a perceptual distance. Raises SystemExit where the settings have none."""
    for kind in ("lpips", "micro"):
        for measure in params.quality.measures.values():
            if measure.kind == kind:
                module = measuring.find(kind)
                settings = module.Settings.model_validate(measure.model_dump(exclude={"kind"}))
                return kind, module.load(settings, device)
    raise SystemExit("quality.measures has neither `kind: lpips` nor `kind: micro`; add one")


def compare(full: dict[str, Any], other: dict[str, Any], network: Any) -> dict[str, Any]:
    """Distances of two sets of pictures, and verdicts that differ."""
    pictures = measuring.Pictures(other["images"], other["prompts"], base=full["images"])
    values = {name: np.asarray(v, float) for name, v in network.measure(pictures).items()}
    pixels = [np.abs(a.astype(int) - b).mean() for a, b in zip(full["images"], other["images"], strict=True)]
    flipped = {
        label: int(((scores > THRESHOLD) != (other["scores"][label] > THRESHOLD)).sum())
        for label, scores in full["scores"].items()
    }
    moved = max(float(np.abs(full["scores"][label] - other["scores"][label]).max()) for label in flipped)
    return {
        "distance": {
            name: {"mean": round(float(np.nanmean(v)), 6), "largest": round(float(np.nanmax(v)), 6)}
            for name, v in values.items()
        },
        "mean_difference_of_255": round(float(np.mean(pixels)), 4),
        "flipped_verdicts": flipped,
        "verdicts": len(pixels) * len(flipped),
        "largest_change_of_a_score": round(moved, 5),
        "seconds_per_image": other["seconds_per_image"],
    }


def main() -> None:
    given = arguments()
    params = load("params.yaml", *given.config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = load_pipeline(params.model, device=device)
    kind, network = distance_of(params, device)
    judge = contract.find(params.detectors[params.judge].kind).load(params.detectors[params.judge], device)
    asked = requests(params, given.images)
    questions = {name: ", ".join(theme.detailed) for name, theme in params.themes.items()}

    def made(dtype: str) -> dict[str, Any]:
        sampler = params.sampler.model_copy(
            update={"dtype": dtype, "batch": given.batch or params.sampler.batch}
        )
        began = time.perf_counter()
        images = [g.image for g in generate(pipeline, asked, sampler, params.model.resolution)]
        seconds = round((time.perf_counter() - began) / len(asked), 4)
        scores = judge.score(np.stack(images), questions)  # type: ignore[arg-type]
        print(f"{dtype}: {seconds} s per image", flush=True)
        return {
            "images": images,
            "prompts": [r.prompt for r in asked],
            "scores": scores,
            "seconds_per_image": seconds,
        }

    full = made("float32")
    figures: dict[str, Any] = {
        **machine.described(device),
        "model": params.model.path,
        "images": len(asked),
        "distance_by": kind,
        "float32_seconds_per_image": full["seconds_per_image"],
        "dtypes": {dtype: compare(full, made(dtype), network) for dtype in given.dtypes},
    }
    if given.json:
        kept = json.loads(given.json.read_text(encoding="utf-8")) if given.json.is_file() else {}
        kept[f"{figures['device']}: {params.model.path}"] = figures
        given.json.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
