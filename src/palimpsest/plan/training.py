"""The cells that methods are trained with: images, masks, and the erased models themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise

from palimpsest.cells import Cell, Shared
from palimpsest.plan.pieces import Pieces
from palimpsest.runs import Run, Variant
from palimpsest.segmenters import registry as segmenters


class Training:
    """Makes the training cells of one plan. keyword_inputs: the cell of derived keyword sets, for variants that read it."""

    def __init__(self, pieces: Pieces, keyword_inputs: Callable[[Variant], list[Cell]]) -> None:
        self.pieces = pieces
        self.keyword_inputs = keyword_inputs
        self.masked: dict[str, int] = {}
        self._fits: dict[tuple[str, str, str], Cell] = {}
        self._settings: dict[tuple[str, str], Shared] = {}

    def chunks(self, count: int) -> list[tuple[int, int]]:
        """Training images come in chunks bounded by the sizes in use, so that a larger set only adds images."""
        sizes = self.pieces.params.training_images
        bounds = sorted({0, *sizes.sizes, math.ceil(sizes.all / len(self.pieces.params.themes)), count})
        return [(a, b) for a, b in pairwise(bounds) if b <= count]

    def images(self, theme: str, role: str, count: int) -> list[Cell]:
        if role == "masked_images":
            return self.masks(theme, count)
        params, sampler = self.pieces.params, self.pieces.params.training_images.sampler
        spec = params.themes[theme]
        cells = []
        for start, stop in self.chunks(count):
            args = {
                "model": self.pieces.model,
                "sampler": self.pieces.sampling(sampler),
                "templates": params.training_images.templates,
                "subjects": spec.detailed if role == "target_images" else [spec.safe],
                "avoid": spec.detailed if role == "safe_images" else [],
                "start": start,
                "stop": stop,
                "seed": params.seed,
            }
            where = {"theme": theme, "role": role, "chunk": f"{start}_{stop}"}
            cells.append(
                self.pieces.cell(
                    "images",
                    where,
                    args,
                    raw={params.model.path: self.pieces.model_raw},
                    hints=self.pieces.hints(sampler),
                )
            )
        return cells

    def masks(self, theme: str, count: int) -> list[Cell]:
        """Masked images, in the chunks of the target images that they are made from (or read from a file instead)."""
        self.masked[theme] = max(count, self.masked.get(theme, 0))
        chosen, chunks = self._segmenter, self.chunks(count)
        reads = chosen.segmenter.INFO.reads == "target_images"
        pictures = (
            [[cell] for cell in self.images(theme, "target_images", count)] if reads else [[]] * len(chunks)
        )
        raw = {path: self.pieces.digest(path, revision) for path, revision in chosen.files.values()}
        cells = []
        for (start, stop), inputs in zip(chunks, pictures, strict=True):
            args = {
                "segmenter": chosen.args,
                "keywords": self.pieces.params.themes[theme].detailed,
                "start": start,
                "stop": stop,
                "resolution": self.pieces.params.model.resolution,
            }
            where = {"theme": theme, "chunk": f"{start}_{stop}"}
            cells.append(self.pieces.cell("masks", where, args, inputs, (chosen.module,), raw))
        return cells

    @cached_property
    def _segmenter(self) -> segmenters.Chosen:
        return segmenters.chosen(self.pieces.params)

    def erase(self, run: Run, variant: Variant) -> list[Cell]:
        if not run.fits:
            return []
        known = (run.method, run.preset, variant.name)
        if known not in self._fits:
            self._fits[known] = self._fit(run, variant)
        return [self._fits[known]]

    def _fit(self, run: Run, variant: Variant) -> Cell:
        images = [
            cell
            for role in run.needs
            for theme in variant.themes
            for cell in self.images(theme, role, variant.images)
        ]
        args = {
            "model": self.pieces.model,
            "method": run.module,
            "settings": self._fitted(run),
            "target": self.pieces.target(variant),
            "seed": self.pieces.params.seed,
            "resolution": self.pieces.params.model.resolution,
        }
        where = {"method": run.method, "preset": run.preset, "variant": variant.name}
        inputs = [*self.keyword_inputs(variant), *images]
        return self.pieces.cell("erase", where, args, inputs, (run.module,), self.pieces.raw(run))

    def _fitted(self, run: Run) -> Shared:
        """The settings that a fit reads: strength acts when a method is applied, so another strength needs no other fit."""
        known = (run.method, run.preset)
        if known not in self._settings:
            self._settings[known] = Shared(
                {name: value for name, value in run.settings.items() if name != "strength"}
            )
        return self._settings[known]

    def check(self) -> None:
        """Raises BadSettings when the masks that methods asked for cannot be made."""
        if self.masked:
            segmenters.check(self.pieces.params, self.masked, self.pieces.root)
