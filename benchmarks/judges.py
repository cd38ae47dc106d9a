"""The judge with one image encoding for all questions, against one pass per image and question.

    python benchmarks/judges.py [FOLDER] [--images 32] [--questions 17]

Both ways score the same random images with the same weights; the scores must agree to 1e-3. Prints both
times and their ratio.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from palimpsest import specs
from palimpsest.detectors import vqa

LARGEST_DIFFERENCE = 1e-3


def one_by_one(judge: vqa.VqaJudge, images: np.ndarray, questions: dict[str, str]) -> dict[str, np.ndarray]:
    """Every pair of image and question on its own, the way the reference library loops."""
    return {
        label: np.concatenate(
            [judge.score(images[i : i + 1], {label: text})[label] for i in range(len(images))]
        )
        for label, text in questions.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default="models/micro/vqa")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--questions", type=int, default=17)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    judge = vqa.load(specs.Detector(kind="vqa", path=given.folder), given.device)
    side = judge.model.settings.image_size
    shape = (given.images, side, side, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    words = ["robot", "gears", "sparks", "static", "house", "lamp", "red", "beach"]
    questions = {
        f"q{i}": ", ".join(words[: 1 + i % 4]) + f" {words[i % 8]} {i}" for i in range(given.questions)
    }
    judge.score(images[:2], questions)  # the first call pays for tokenising and memory

    start = time.perf_counter()
    together = judge.score(images, questions)
    batched = time.perf_counter() - start
    start = time.perf_counter()
    apart = one_by_one(judge, images, questions)
    single = time.perf_counter() - start

    difference = max(float(np.abs(together[label] - apart[label]).max()) for label in questions)
    pairs = given.images * given.questions
    print(f"{given.images} images x {given.questions} questions on {given.device}, {side}x{side} pixels")
    print(f"one pass per image and question: {single:8.2f} s ({pairs / single:8.1f} scores/s)")
    print(f"one encoding for all questions:  {batched:8.2f} s ({pairs / batched:8.1f} scores/s)")
    print(f"ratio: {single / batched:.1f}x; largest difference of a score: {difference:.1e}")
    if difference > LARGEST_DIFFERENCE:
        raise SystemExit(f"scores differ by {difference:.1e}, more than {LARGEST_DIFFERENCE}")
    if given.json:
        figures = {
            "device": given.device,
            "images": given.images,
            "questions": given.questions,
            "apart_scores_per_second": round(pairs / single, 1),
            "together_scores_per_second": round(pairs / batched, 1),
            "ratio": round(single / batched, 2),
            "largest_difference_of_a_score": difference,
        }
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
