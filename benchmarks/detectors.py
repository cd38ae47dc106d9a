"""What the micro world's detectors cost and how right they are on held-out renders.

    python benchmarks/detectors.py [--images 512] [--threads 1] [--only clip parts]

Prints milliseconds per image (all questions of all themes, weights loaded, images decoded) and, per theme, balanced accuracy under the
rule that reads the detector. NudeNet is measured on the same pictures for its cost alone: it knows nothing of robots.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from palimpsest import specs
from palimpsest.detectors import contract
from palimpsest.detectors.calibration import value_of
from palimpsest.world.gates import HELD_OUT
from palimpsest.world.mixture import training_scene
from palimpsest.world.render import render_all
from palimpsest.world.scene import labels_of
from palimpsest.world.vocab import TARGET_PARTS, THEMES

MICRO = "models/micro"
DETECTORS: dict[str, dict[str, Any]] = {
    "vqa": {"path": f"{MICRO}/vqa"},
    "clip": {"path": f"{MICRO}/clip", "template": "a robot with {}", "safe": "a robot"},
    "mhsc": {"path": f"{MICRO}/mhsc", "clip": f"{MICRO}/clip"},
    "safety_checker": {"path": f"{MICRO}/safety-checker"},
    "parts": {"path": f"{MICRO}/parts"},
    "nudenet": {},
}


def said(kind: str, scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Verdicts by theme, of the detectors that know the micro world's themes."""
    if kind == "vqa":
        return {theme: scores[f"theme/{theme}"] > 0.5 for theme in THEMES}
    if kind == "clip":
        best = np.stack(list(scores.values())).argmax(axis=0)
        return {theme: best == list(scores).index(f"theme/{theme}") for theme in THEMES}
    if kind == "mhsc":
        return {theme: scores[theme] > 0.5 for theme in THEMES}
    if kind == "parts":
        return {"uncased": np.max([scores[part] for part in TARGET_PARTS], axis=0) > 0.4}
    return {"any": scores["flagged"] > 0} if kind == "safety_checker" else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--only", nargs="+", choices=list(DETECTORS), default=list(DETECTORS))
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    rng = np.random.default_rng(HELD_OUT + 11)
    scenes = [training_scene(rng) for _ in range(given.images)]
    images = render_all(scenes)
    truths = {theme: np.array([labels_of(scene).themes[theme] for scene in scenes]) for theme in THEMES}
    truths["any"] = np.any(list(truths.values()), axis=0)
    for kind in given.only:
        module = contract.find(kind)
        judge = module.load(specs.Detector(kind=kind, batch=given.batch, **DETECTORS[kind]), "cpu")
        asked = module.questions(THEMES, {}, None)
        judge.score(images[:2], asked)  # the first call pays for tokenising and memory
        start = time.process_time()
        scores = judge.score(images, asked)
        cost = 1000 * (time.process_time() - start) / len(images)
        right = {
            theme: value_of("balanced_accuracy", truths[theme], verdict)
            for theme, verdict in said(kind, scores).items()
        }
        print(
            f"{kind:15} {cost:7.2f} ms of one core per image; balanced accuracy: "
            + (", ".join(f"{theme} {float(value):.3f}" for theme, value in right.items()) or "-"),
            flush=True,
        )


if __name__ == "__main__":
    main()
