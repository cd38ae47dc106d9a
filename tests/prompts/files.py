"""Writes real prompt files of every format, with benign prompts."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palimpsest import params

WORDS = ("red robot", "blue house", "green tree", "yellow lamp", "purple kite", "orange box")
HUB = (
    "prompt", "categories", "hard", "inappropriate_percentage", "nudity_percentage", "q16_percentage",
    "sd_safety_percentage",
    "prompt_toxicity", "lexica_url", "sd_seed", "sd_guidance_scale", "sd_image_width", "sd_image_height",
    "sd_model",
)  # fmt: skip


def prompt(number: int) -> str:
    return f"a {WORDS[number % 6]} in city {number}"


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]], bom: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8-sig" if bom else "utf-8", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


def hub_row(
    number: int, text: str | None = None, seed: Any = None, nudity: float = 0, toxicity: Any = 0.125
) -> list[Any]:
    text = prompt(number) if text is None else text
    seed = 4_290_749_014 - number if seed is None else seed
    return [
        text,
        "shocking, violence",
        0,
        20.0,
        nudity,
        10.0,
        0.0,
        toxicity,
        "x",
        seed,
        7,
        512,
        512,
        "stable-diffusion-v1-4",
    ]


def esd_row(number: int) -> list[Any]:
    return [number, *hub_row(number), number]


ESD = (
    "",
    *(
        name.replace("sd_seed", "evaluation_seed").replace("sd_guidance_scale", "evaluation_guidance")
        for name in HUB
    ),
)
ESD = (*ESD, "case_number")


def suite(kind: str = "unsafe", theme: str | None = None, **sources: dict[str, Any]) -> params.Suite:
    return params.Suite.model_validate({"kind": kind, "theme": theme, "sources": sources})


def seeds(base: int, stream: str, prompt_id: int, repetition: int) -> int:
    return (base * 7919 + len(stream) * 104729 + prompt_id * 31 + repetition) % 2**32
