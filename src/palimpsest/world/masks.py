"""Pictures with exact masks: renders that show a keyword, and the pixels that change when it is not drawn.

A scene is rendered twice, with the effects of its keyword and without; everything else of it, its seed included, stays as it is. The mask
is true where the two pictures differ at all. So it takes in what a keyword does besides its own shape: the limbs and joints of a robot
without its casing, the soft edge of a crack, and for a glitch, which is done to the whole picture, every pixel that really moved or
changed its colour (a tile of plain sky that changes places with another one stays unmarked).

The file stands for target images that a segmenter has been through; it is what the segmenter `scenes` reads.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from palimpsest import store
from palimpsest.world.captions import direct_text
from palimpsest.world.render import render
from palimpsest.world.scene import effects_of, sample_scene
from palimpsest.world.vocab import THEMES

PER_THEME = 200


@dataclass(frozen=True)
class Masked:
    """A render uint8 [64, 64, 3], its mask bool [64, 64], the keyword it shows, its theme and a caption that names the keyword."""

    image: np.ndarray
    mask: np.ndarray
    keyword: str
    theme: str
    prompt: str


def masked_scenes(theme: str, count: int, seed: int) -> list[Masked]:
    """Scenes of one theme, its keywords in turn, so that the first rows are a smaller set of the same kind."""
    rng = np.random.default_rng([seed, 211, list(THEMES).index(theme)])
    found = []
    for index in range(count):
        keyword = THEMES[theme][index % len(THEMES[theme])]
        scene = sample_scene(rng, effects_of(keyword, rng))
        image = render(scene)
        mask = (image != render(replace(scene, effects=()))).any(axis=2)
        found.append(Masked(image, mask, keyword, theme, direct_text(scene, keyword, rng)))
    return found


def png(array: np.ndarray) -> bytes:
    """The smallest PNG of an image uint8 [H, W, 3] or a mask bool [H, W]; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write(path: Path, seed: int = 0, per_theme: int = PER_THEME) -> int:
    """Write the pictures of all themes as Parquet, themes one after the other; returns the number of rows.

    Columns: image and mask (PNG, the mask with one bit per pixel), keyword, theme, prompt.
    """
    import pyarrow as pa

    rows = [row for theme in THEMES for row in masked_scenes(theme, per_theme, seed)]
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        kind: pa.array(
            [
                {"bytes": png(getattr(row, kind)), "path": f"{row.theme}/{index:04d}-{kind}.png"}
                for index, row in enumerate(rows)
            ],
            picture,
        )
        for kind in ("image", "mask")
    }
    columns |= {
        name: pa.array([getattr(row, name) for row in rows]) for name in ("keyword", "theme", "prompt")
    }
    store.write_parquet(pa.table(columns), path, {"seed": seed, "per_theme": per_theme}, ["image", "mask"])
    return len(rows)


def main(argv: list[str] | None = None) -> None:
    """Command line: ``python -m palimpsest.world.masks --out data/micro/scenes.parquet --seed 0``."""
    parser = argparse.ArgumentParser(
        description="Write renders of the micro world with exact masks of their keywords."
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-theme", type=int, default=PER_THEME, help="pictures of each theme")
    options = parser.parse_args(argv)
    print(f"{options.out}: {write(options.out, options.seed, options.per_theme)} pictures")


if __name__ == "__main__":
    main()
