"""Does a method erase, at what loss, and does its strength knob turn? One fit, judged on few images, in a minute.

    python benchmarks/erasure.py esd/x_compvis --theme uncased
    python benchmarks/erasure.py ac/benchmark --theme all --images 200 --strengths 0 0.5 1 --set iterations=40
    python benchmarks/erasure.py spm/intended --theme uncased --show grid.png

Fits the method on one variant of params.yaml, makes the images of the unsafe suite that the theme's base images are unsafe in,
and the benign suite, and prints for every strength: EP on the theme with its interval, the share of benign images flagged, their
mean change (RMSE, SSIM), seconds and UNet evaluations of the fit. Base images and training images are kept in --cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from palimpsest.detectors import vqa
from palimpsest.methods import registry, sd_np
from palimpsest.methods.contract import Artifact, ImageSet, Target, ThemeTarget, TrainingData
from palimpsest.metrics import drift, ep, intervals
from palimpsest.params import Params, load
from palimpsest.prompts.ingest import ingest
from palimpsest.sampling.load import load_pipeline
from palimpsest.sampling.loop import Request, generate
from palimpsest.sampling.noise import image_seed
from palimpsest.segmenters import registry as segmenters
from palimpsest.segmenters.contract import Asked

WORLD = 64


class Kept:
    """Arrays on disk by a name and everything that decides them, so that a second trial starts at once."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, name: str, recipe: Any, make: Any) -> dict[str, np.ndarray]:
        """What `make()` gives, from the folder when it is there."""
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:16]
        path = None if self.folder is None else self.folder / f"{name}-{digest}.npz"
        if path is not None and path.is_file():
            with np.load(path, allow_pickle=False) as found:
                return dict(found)
        arrays: dict[str, np.ndarray] = make()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{time.time_ns()}.part.npz")
            np.savez(part, **arrays)  # type: ignore[arg-type]
            part.replace(path)
        return arrays


def pictures(pipeline: Any, prompts: list[str], seeds: list[int], sampler: Any) -> np.ndarray:
    """uint8 [N, H, W, 3]; an image that was not made is black."""
    asked = [Request(str(i), p, int(s)) for i, (p, s) in enumerate(zip(prompts, seeds, strict=True))]
    black = np.zeros((WORLD, WORLD, 3), np.uint8)
    made = [g.image for g in generate(pipeline, asked, sampler, WORLD)]
    return np.stack([black if image is None else image for image in made])


def rows_of(params: Params, kind: str) -> dict[str, list[Any]]:
    """prompt, seed, prompt_id, source of all suites of a kind that belong to no single theme."""
    columns: dict[str, list[Any]] = {"prompt": [], "seed": [], "prompt_id": [], "source": []}
    for name, suite in params.suites.items():
        if suite.kind == kind and suite.theme is None:
            frame = ingest(name, suite, params.seed, Path("."), image_seed=image_seed)[0].filter(gate="ok")
            for column in columns:
                columns[column] += frame[column].to_list()
    return columns


def training_set(params: Params, base: Any, theme: str, role: str, count: int) -> dict[str, np.ndarray]:
    """Images and prompts of one theme and role, made as step `images` makes them."""
    spec, setup = params.themes[theme], params.training_images
    subjects = spec.detailed if role == "target_images" else [spec.safe]
    prompts = [
        setup.templates[(i // len(subjects)) % len(setup.templates)].format(subjects[i % len(subjects)])
        for i in range(count)
    ]
    pipeline = base
    if role == "safe_images":
        avoided = Target((ThemeTarget(theme, tuple(spec.detailed), ""),))
        pipeline = sd_np.apply(base, Artifact(), avoided, sd_np.Settings())
    seeds = [image_seed(params.seed, f"{theme}-{role}", i, 0) for i in range(count)]
    return {"images": pictures(pipeline, prompts, seeds, setup.sampler), "prompts": np.array(prompts)}


def masked_set(params: Params, theme: str, count: int) -> ImageSet:
    """Masked images of one theme as step `masks` has them, for a segmenter that brings its own pictures."""
    chosen = segmenters.chosen(params)
    asked = Asked(theme, tuple(params.themes[theme].detailed), 0, count)
    rows = list(chosen.segmenter.masked(chosen.settings, asked, []))
    return ImageSet(
        theme,
        "masked_images",
        np.stack([row.picture.image for row in rows]),
        tuple(row.picture.prompt for row in rows),
        np.stack([row.mask for row in rows]),
        tuple(row.picture.keyword for row in rows),
    )


class Trial:
    """One method on one variant of params.yaml: what it is given, and what it makes at a strength."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.params = given, load("params.yaml")
        self.name, _, preset = given.method.partition("/")
        files = registry.settings_files("methods")
        file = files[self.name]
        self.preset = preset or file.run[0]
        overrides = self.params.overrides
        chosen = {**overrides.get(self.name, {}), **overrides.get(f"{self.name}/{self.preset}", {})}
        chosen |= {
            key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in given.set)
        }
        self.settings = registry.settings(self.name, self.preset, chosen, files)
        self.method, self.kept = registry.get(file.method), Kept(given.cache)
        self.base = load_pipeline(self.params.model)
        self.judge = vqa.load(self.params.detectors[self.params.judge])
        self.sampler = self.params.sampler.model_copy(update=file.samplers.get(self.preset, {}))
        themes = self.params.themes
        self.themes = list(themes) if given.theme == "all" else [given.theme]
        self.target = Target(
            tuple(ThemeTarget(t, tuple(themes[t].detailed), themes[t].safe) for t in self.themes),
            tuple(self.params.retain),
        )

    def judged(self, images: np.ndarray) -> np.ndarray:
        """Which images show one of the themes."""
        words = {theme: ", ".join(self.params.themes[theme].detailed) for theme in self.themes}
        flagged = np.stack(list(self.judge.score(images, words).values())).max(axis=0) > self.given.threshold
        # the judge has never seen a black picture; one that was not made shows nothing
        return flagged & images.any(axis=(1, 2, 3))

    def before(self, kind: str) -> dict[str, np.ndarray]:
        """The base's images of a kind of suite with their rows and verdicts."""

        def make() -> dict[str, np.ndarray]:
            rows = rows_of(self.params, kind)
            images = pictures(self.base, rows["prompt"], rows["seed"], self.sampler)
            return {
                **{k: np.array(v) for k, v in rows.items()},
                "images": images,
                "unsafe": self.judged(images),
            }

        recipe = [kind, self.params.model.path, self.sampler.model_dump(), self.params.themes, self.themes]
        return self.kept.get(kind, recipe, make)

    def training(self) -> TrainingData:
        """The images that the method is trained on."""
        params, sets = self.params, []
        count = math.ceil(self.given.images / len(self.themes))
        for role in self.method.INFO.needs:
            for theme in self.themes:
                if role == "masked_images":
                    sets.append(masked_set(params, theme, count))
                    continue
                what = [theme, role, count, params.training_images.model_dump(), params.themes]
                make = partial(training_set, params, self.base, theme, role, count)
                made = self.kept.get("training", what, make)
                sets.append(ImageSet(theme, role, made["images"], tuple(str(p) for p in made["prompts"])))
        return TrainingData(tuple(sets))

    def fit(self) -> tuple[Artifact, float]:
        """The fitted artifact and the seconds it took, which are printed."""
        data, started = self.training(), time.perf_counter()
        artifact: Artifact = self.method.fit(self.base, self.target, data, self.settings, self.params.seed)
        seconds = time.perf_counter() - started
        size = sum(t.numel() * t.element_size() for t in artifact.tensors.values()) / 2**20
        losses = artifact.meta.get("losses") or [math.nan]
        print(
            f"{self.name}/{self.preset} {self.given.theme}: fit {seconds:.1f} s, {artifact.meta.get('unet_evaluations', 0)} UNet "
            f"evaluations, {size:.1f} MB, loss {losses[0]:.4g} -> {losses[-1]:.4g}"
        )
        return artifact, seconds

    def at(
        self, artifact: Artifact, strength: float | None, unsafe: dict[str, Any], benign: dict[str, Any]
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Figures at a strength (None: as set), which are printed, and a row of images for the picture."""
        params = self.params
        changed = {} if strength is None else {"strength": strength}
        pipeline = self.method.apply(
            self.base, artifact, self.target, self.settings.model_copy(update=changed)
        )
        after, good = (
            pictures(pipeline, rows["prompt"].tolist(), rows["seed"].tolist(), self.sampler)
            for rows in (unsafe, benign)
        )
        bad = self.judged(after)
        counts = ep.count(unsafe["unsafe"], bad)
        low, high = intervals.ep_interval(
            unsafe["unsafe"], bad, unsafe["prompt_id"], unsafe["source"],
            resamples=params.statistics.resamples, confidence=params.statistics.confidence, seed=params.seed,
        )  # fmt: skip
        figure = {
            "strength": strength,
            "ep": counts.ep,
            "ep_low": low,
            "ep_high": high,
            "flagged": float(self.judged(good).mean()),
            "rmse": float(drift.rmse(benign["images"], good).mean()),
            "ssim": float(drift.ssim(benign["images"], good).mean()),
        }
        print(
            f"  strength {'as set' if strength is None else strength}: EP {100 * counts.ep:.1f} % [{100 * low:.1f}, {100 * high:.1f}] "
            f"of {counts.n_base_unsafe} unsafe of {counts.n}; suppressed {counts.suppressed}, induced {counts.induced}; "
            f"benign flagged {100 * figure['flagged']:.1f} % (base {100 * benign['unsafe'].mean():.1f} %), "
            f"RMSE {figure['rmse']:.3f}, SSIM {figure['ssim']:.3f}",
            flush=True,
        )
        return figure, np.concatenate([after[some_of(unsafe["unsafe"])], good[:8]])


def some_of(unsafe: np.ndarray) -> np.ndarray:
    """Positions of at most eight unsafe images, spread over all."""
    drawn = np.flatnonzero(unsafe)
    return drawn[:: max(1, len(drawn) // 8)][:8]


def main() -> None:
    given = arguments()
    trial = Trial(given)
    unsafe, benign = trial.before("unsafe"), trial.before("benign")
    artifact, seconds = trial.fit()
    figures, shown = zip(
        *(trial.at(artifact, strength, unsafe, benign) for strength in given.strengths), strict=True
    )
    if given.show:
        first = np.concatenate([unsafe["images"][some_of(unsafe["unsafe"])], benign["images"][:8]])
        save_grid([first, *shown], given.show)
    if given.json:
        known = json.loads(given.json.read_text(encoding="utf-8")) if given.json.is_file() else {}
        known[f"{trial.name}/{trial.preset} {given.theme}"] = {
            "set": given.set,
            "fit_seconds": seconds,
            "at": figures,
        }
        given.json.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def save_grid(rows: list[np.ndarray], path: Path) -> None:
    """A picture: the base on top, then one row per strength; 8 unsafe images, then 8 benign ones."""
    from PIL import Image

    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    Image.fromarray(grid).resize((grid.shape[1] * 2, grid.shape[0] * 2), Image.Resampling.NEAREST).save(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", help="method or method/preset")
    parser.add_argument("--theme", default="uncased", help='a theme of params.yaml, or "all"')
    parser.add_argument("--images", type=int, default=200, help="training images per theme (in all for all)")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings laid over params.yaml's"
    )
    parser.add_argument("--strengths", nargs="*", type=float, default=[None])
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument(
        "--json", type=Path, help="a file of such figures, in which those of this run replace older ones"
    )
    parser.add_argument("--cache", type=Path, help="folder for base and training images")
    parser.add_argument("--show", type=Path, help="write a picture of some images here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
