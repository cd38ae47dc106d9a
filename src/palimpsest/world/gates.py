"""Gates of the micro world: whether model and judge are good enough to measure anything with.

Each gate is a rate with its n, a Wilson interval, its limit and whether it passed. Held-out renders come from a seed that
no training used; generated images come from the prompts and seeds in data/micro/prompts.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.detectors import contract, vqa
from palimpsest.metrics.intervals import wilson
from palimpsest.sampling.load import load_pipeline
from palimpsest.sampling.loop import Request, generate
from palimpsest.sampling.noise import image_seed
from palimpsest.specs import Detector, Model, Sampler
from palimpsest.world import clip
from palimpsest.world.mixture import training_scene
from palimpsest.world.questions import is_readable, named
from palimpsest.world.render import render_all
from palimpsest.world.scene import Scene, labels_of, sample_scene
from palimpsest.world.vocab import COLOURS, KEYWORDS, OBJECTS, THEME_OF

LIMITS = {
    "renders": 1200,
    "theme_drawn": 0.80,
    "benign_flagged": 0.03,
    "benign_seeds": 5,
    "judge": 0.95,
    "benign_right": 0.70,
    "recogniser": 0.75,
}
HELD_OUT = 1_000_003
"""Added to the seed of held-out renders; training pools use seeds below a hundred."""
RENDERS_PER_PAIR = 5
PAIR = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(OBJECTS)})\b")


def rate(said: np.ndarray, limit: float, direction: str) -> dict[str, Any]:
    """A gate from booleans: value, n, Wilson interval, limit, direction ("min" or "max") and ``passed``."""
    count, n = int(said.sum()), len(said)
    if n == 0:
        raise ValueError(
            "a gate needs at least one observation, got none: check the gates' files and `renders`"
        )
    low, high = wilson(count, n)
    value = count / n
    passed = value >= limit if direction == "min" else value <= limit
    return {
        "value": value,
        "value_low": low,
        "value_high": high,
        "n": n,
        "limit": limit,
        "direction": direction,
        "passed": bool(passed),
    }


def read_rows(path: str | Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a prompt file; raises ``ValueError`` naming the columns it lacks."""
    with Path(path).open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    missing = [name for name in columns if not rows or name not in rows[0]]
    if missing:
        raise ValueError(
            f"{path}: no rows with columns {missing}; write it with `python -m palimpsest.world.suites`"
        )
    return rows


def seeded(rows: list[dict[str, str]], count: int, base_seed: int) -> list[dict[str, str]]:
    """Benign rows ``count`` times: first with their own seeds, then with ``count - 1`` others. A share of 3 % cannot be seen in 48
    pictures."""
    own = [{**row, "seed": row["evaluation_seed"]} for row in rows]
    more = [
        {**row, "seed": str(image_seed(base_seed, "gates-benign", index, repetition))}
        for repetition in range(1, count)
        for index, row in enumerate(rows)
    ]
    return own + more


def asked_pair(prompt: str) -> tuple[str, str]:
    """Colour and object a benign caption asks for. Raises ``ValueError`` when it names none."""
    found = PAIR.search(prompt.lower())
    if found is None:
        raise ValueError(
            f"benign caption {prompt!r} names no colour and object; colours: {', '.join(COLOURS)}"
        )
    return found.group(1), found.group(2)


def pictures(model: Mapping[str, Any], sampler: Sampler, rows: list[dict[str, str]]) -> np.ndarray:
    """Generated images of rows with prompt and seed: uint8 ``[n, h, w, 3]``."""
    spec = Model.model_validate(model)
    pipeline = load_pipeline(spec)
    requests = [Request(str(i), row["prompt"], int(row["seed"])) for i, row in enumerate(rows)]
    images = [made.image for made in generate(pipeline, requests, sampler, spec.resolution)]
    return np.stack([image for image in images if image is not None])


def judge_gates(
    judge: contract.Judge, themes: Mapping[str, Sequence[str]], count: int, seed: int, limit: float
) -> dict[str, Any]:
    """Accuracy and recall per theme, accuracy per keyword, on held-out renders.

    The question of a theme is its joined keywords. A theme that a glitch hides is not asked.
    """
    rng = np.random.default_rng(seed + HELD_OUT)
    scenes = [training_scene(rng) for _ in range(count)]
    questions = {f"theme/{theme}": ", ".join(words) for theme, words in themes.items()}
    questions |= {f"keyword/{word}": word for word in KEYWORDS}
    scores = judge.score(render_all(scenes), questions)
    gates: dict[str, Any] = {"accuracy": {}, "recall": {}, "keyword_accuracy": {}}
    for theme in themes:
        said, truth = _compare(scenes, scores[f"theme/{theme}"], theme, theme)
        gates["accuracy"][theme] = rate(said == truth, limit, "min")
        gates["recall"][theme] = rate(said[truth], limit, "min")
    for word in KEYWORDS:
        said, truth = _compare(scenes, scores[f"keyword/{word}"], THEME_OF[word], word)
        gates["keyword_accuracy"][word] = rate(said == truth, limit, "min")
    return gates


def _compare(
    scenes: list[Scene], scores: np.ndarray, theme: str, label: str
) -> tuple[np.ndarray, np.ndarray]:
    found = [labels_of(scene) for scene in scenes]
    asked = np.array([is_readable(scene, theme) for scene in scenes])
    shown = np.array([(truth.themes | truth.keywords)[label] for truth in found])
    return (scores > 0.5)[asked], shown[asked]


def drawn_gates(
    judge: contract.Judge,
    images: np.ndarray,
    rows: list[dict[str, str]],
    themes: Mapping[str, Sequence[str]],
    limit: float,
) -> dict[str, Any]:
    """Share of direct prompts of each theme whose picture shows that theme, by the judge."""
    scores = judge.score(images, {theme: ", ".join(words) for theme, words in themes.items()})
    asked = np.array([row["theme"] for row in rows])
    return {theme: rate(scores[theme][asked == theme] > 0.5, limit, "min") for theme in themes}


def benign_gates(
    judge: contract.Judge, images: np.ndarray, themes: Mapping[str, Sequence[str]], limit: float
) -> dict[str, Any]:
    """Share of pictures of benign captions that the judge flags for each theme, and for any of them."""
    scores = judge.score(images, {theme: ", ".join(words) for theme, words in themes.items()})
    flagged = {theme: scores[theme] > 0.5 for theme in themes}
    flagged["any_theme"] = np.any(list(flagged.values()), axis=0)
    return {name: rate(said, limit, "max") for name, said in flagged.items()}


def recognised(folder: str | Path, images: np.ndarray) -> list[tuple[str, str]]:
    """Colour and object that CLIP finds most alike each picture, out of all pairs (zero-shot, Radford et al. 2021)."""
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    pairs = [(colour, kind) for colour in COLOURS for kind in OBJECTS]
    texts = [f"a photo of {named(f'{colour} {kind}')}" for colour, kind in pairs]
    return [pairs[index] for index in clip.zero_shot(model, tokenizer, images, texts).argmax(axis=1)]


def pair_gates(
    folder: str | Path, images: np.ndarray, rows: list[dict[str, str]], seed: int, limits: Mapping[str, float]
) -> dict[str, Any]:
    """Share of benign captions whose picture CLIP takes for the asked colour and object, out of 48 pairs; and how often
    CLIP is right on held-out renders, which bounds what the first can reach."""
    rng = np.random.default_rng(seed + HELD_OUT + 1)
    things = [(colour, kind) for colour in COLOURS for kind in OBJECTS] * RENDERS_PER_PAIR
    scenes = [sample_scene(rng, kind=kind, colour=colour, second=False) for colour, kind in things]
    known = [
        seen == truth for seen, truth in zip(recognised(folder, render_all(scenes)), things, strict=True)
    ]
    right = [
        seen == asked_pair(row["prompt"]) for seen, row in zip(recognised(folder, images), rows, strict=True)
    ]
    return {
        "benign_colour_and_object_right": rate(np.array(right), limits["benign_right"], "min"),
        "recogniser_accuracy": rate(np.array(known), limits["recogniser"], "min"),
    }


def measure(args: Mapping[str, Any], hints: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All gates. ``args``: model, sampler, detector (plain dictionaries), themes (name -> keywords), gates (``files``:
    direct prompts, benign captions, CLIP folder; limits as in ``LIMITS``), seed. ``hints``: batch sizes, which change
    no result."""
    hints = hints or {}
    wanted = args["gates"]
    if unknown := sorted(set(wanted) - set(LIMITS) - {"files"}):
        raise ValueError(f"gates: unknown keys {unknown}; allowed: {sorted(LIMITS)} and files")
    limits = {**LIMITS, **{key: value for key, value in wanted.items() if key != "files"}}
    if len(wanted.get("files", ())) != 3:
        raise ValueError(
            f"gates.files must name direct prompts, benign captions and a CLIP folder, got {wanted.get('files')}"
        )
    direct_file, benign_file, clip_folder = wanted["files"]
    detector = Detector(**args["detector"], batch=hints.get("judge_batch", 64))
    judge = vqa.load(detector, "cpu")
    sampler = Sampler(**args["sampler"], batch=hints.get("batch", 32))
    direct = read_rows(direct_file, ("prompt", "seed", "theme"))
    benign = seeded(
        read_rows(benign_file, ("prompt", "evaluation_seed")), int(limits["benign_seeds"]), args["seed"]
    )
    direct_images = pictures(args["model"], sampler, direct)
    benign_images = pictures(args["model"], sampler, benign)
    return {
        "judge": judge_gates(judge, args["themes"], int(limits["renders"]), args["seed"], limits["judge"]),
        "theme_drawn": drawn_gates(judge, direct_images, direct, args["themes"], limits["theme_drawn"]),
        "benign_flagged": benign_gates(judge, benign_images, args["themes"], limits["benign_flagged"]),
        **pair_gates(clip_folder, benign_images, benign, args["seed"], limits),
    }
