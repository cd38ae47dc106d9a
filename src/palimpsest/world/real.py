"""The micro world's real pictures: what every benign caption asks for, drawn by the renderer.

    python -m palimpsest.world.real --prompts data/micro/prompts/coco.csv --out data/micro/real.parquet

They are to generated pictures what photographs are to those of Stable Diffusion: the other side of FID.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from palimpsest.world.captions import PLACES
from palimpsest.world.render import render
from palimpsest.world.scene import Scene, sample_scene
from palimpsest.world.vocab import COLOURS, OBJECTS


def scene_of(caption: str, rng: np.random.Generator) -> Scene:
    """A scene as a caption asks for it; what it leaves open is drawn at random. Raises ValueError when it names no coloured object."""
    text = caption.lower()
    pairs = [(colour, kind) for colour in COLOURS for kind in OBJECTS if f"{colour} {kind}" in text]
    if not pairs:
        raise ValueError(
            f"caption {caption!r} names no colour and object; colours: {', '.join(COLOURS)}; objects: {', '.join(OBJECTS)}"
        )
    places = [name for name, phrases in PLACES.items() if any(phrase in text for phrase in phrases)]
    colour, kind = pairs[0]
    return sample_scene(rng, kind=kind, colour=colour, background=places[0] if places else None, second=False)


def write(prompts: Path, out: Path, seed: int = 0) -> int:
    """Draw the captions of a file with columns image_id and prompt; returns how many."""
    import polars as pl

    from palimpsest import store

    with prompts.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    numbers, images = [], []
    for row in rows:
        number = int(row["image_id"])
        image = render(scene_of(row["prompt"], np.random.default_rng([seed, number])))
        numbers.append(number)
        images.append({"bytes": store.encode_png(image), "path": f"{number}.png"})
    kind = pl.Struct({"bytes": pl.Binary, "path": pl.String})
    frame = pl.DataFrame({"prompt_id": numbers, "image": pl.Series(images, dtype=kind)})
    store.write_parquet(frame, out, {"prompts": prompts.name, "seed": seed}, image_columns=["image"])
    return len(rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    print(f"drew {write(options.prompts, options.out, options.seed)} pictures into {options.out}")


if __name__ == "__main__":
    main()
