"""The work of every cell of a plan: images, evaluations of the UNet, and operations by kind, counted before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from palimpsest.cells import Cell
from palimpsest.estimate import networks
from palimpsest.methods import _costs
from palimpsest.needs import GIB, Needs, weights_bytes
from palimpsest.plan.build import Plan
from palimpsest.sampling.schedulers import evaluations
from palimpsest.specs import Rule, Sampler

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
# Parameters of judges whose weights are not here yet.
PARAMETERS = {"vqa": 11_500_000_000, "clip": 428_000_000, "masks": 814_000_000}
ON_DEVICE = (
    "generate", "images", "suppression", "gates", "erase", "score", "renders", "quality", "real", "masks",
)  # fmt: skip


@dataclass(frozen=True)
class Load:
    """Work of one kind: operations, and how often the network is called for it (0 where that cannot matter)."""

    kind: str
    dtype: str
    operations: float
    calls: float = 0.0


@dataclass
class Job:
    """What one cell is. evaluations: of the UNet, of single samples, forward. reads: bytes of weights."""

    images: int = 0
    evaluations: float = 0.0
    loads: list[Load] = field(default_factory=list)
    reads: float = 0.0


class Counter:
    """Counts the cells of one plan. What cannot be counted is said once, in `unknown`."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.params, self.root = plan, plan.params, plan.root
        self.needs = Needs(plan)
        self.unknown: dict[str, None] = {}
        model = self.params.model
        self.model = networks.Diffusion(
            model.path, model.revision, model.architecture, model.resolution, self.root
        )
        self._others: dict[tuple[Any, ...], networks.Diffusion] = {}
        self._judges: dict[str, tuple[float, float] | None] = {}
        self._asked: dict[int, int] = {}
        self._read: dict[str, float] = {}
        self._jobs: dict[str, Job] = {}
        self._disk: dict[str, int] = {}

    def job(self, cell: Cell) -> Job:
        """The work of one cell."""
        if cell.path not in self._jobs:
            self._jobs[cell.path] = self._job(cell)
        return self._jobs[cell.path]

    def disk(self, cell: Cell) -> int:
        """Bytes that one cell will write."""
        if cell.path not in self._disk:
            self._disk[cell.path] = sum(self.needs.disk([cell]).values())
        return self._disk[cell.path]

    def _job(self, cell: Cell) -> Job:
        images = self.needs.images(cell)
        if cell.step not in ON_DEVICE:
            return Job(images)
        count = {
            "generate": self._generate,
            "images": self._images,
            "erase": self._erase,
            "suppression": self._prompted,
            "gates": self._prompted,
            "score": self._score,
            "renders": self._score,
        }.get(cell.step, self._measured)
        found: Job = count(cell, images)
        return found

    # --- making images --------------------------------------------------------------------------------------------------------

    def _sampled(self, cell: Cell, images: int, declared: _costs.Sampling, model: networks.Diffusion) -> Job:
        sampler = Sampler(**cell.args["sampler"], batch=cell.hints.get("batch", 32))
        steps = evaluations(sampler.name, sampler.steps)
        samples = images * steps * declared.branches
        calls = math.ceil(images / sampler.batch) * steps
        found = Job(images, samples, reads=4.0 * self.needs.parameters)
        if not declared.branches:
            return Job(images)
        found.loads = [
            Load("sampling", sampler.dtype, samples * model.evaluation, calls),
            Load("coding", sampler.dtype, images * model.decoding),
            Load("judging", "float32", images * model.prompt),
        ]
        if declared.vision:
            seen = images * declared.vision * networks.clip_image("", None, self.root)
            found.loads.append(Load("judging", "float32", seen))
        return found

    def _generate(self, cell: Cell, images: int) -> Job:
        sampler = Sampler(**cell.args["sampler"])
        settings = cell.args["settings"]
        declared = _costs.sampling(cell.args["method"], settings, sampler)
        model = self.model
        if declared.architecture:
            side = declared.resolution or self.params.model.resolution
            known = (
                settings.get("checkpoint", ""),
                settings.get("checkpoint_revision"),
                declared.architecture,
                side,
            )
            if known not in self._others:
                self._others[known] = networks.Diffusion(*known, self.root)
            model = self._others[known]
        return self._sampled(cell, images, declared, model)

    def _images(self, cell: Cell, images: int) -> Job:
        guided = 2.0 if cell.args["sampler"]["guidance"] > 1 else 1.0
        return self._sampled(cell, images, _costs.Sampling(guided), self.model)

    def _prompted(self, cell: Cell, images: int) -> Job:
        """Images that are judged at once, by one question each."""
        found = self._images(cell, images)
        judge = self.plan.detectors[self.params.judge]
        cost = self._judge(judge.name)
        if cost:
            found.loads.append(Load("judging", judge.spec.dtype, images * sum(cost)))
        return found

    # --- fitting --------------------------------------------------------------------------------------------------------------

    def _erase(self, cell: Cell, images: int) -> Job:
        args = cell.args
        declared = _costs.passes(args["method"], args["settings"], self.work(cell))
        found = Job(0, reads=4.0 * self.needs.parameters)
        if declared is None:
            self._say(
                f"fitting {cell.where['method']}: the method declares no passes (docs/estimate.md says how)"
            )
            return found
        dtype = args["settings"].get("compute", "float32")
        for one in declared:
            found.evaluations += one.samples
            operations = one.samples * one.size * self.model.evaluation * (1 + one.backward)
            found.loads.append(Load("training", dtype, operations, one.calls * (1 + one.backward)))
        return found

    def work(self, cell: Cell) -> _costs.Work:
        """What a fit is given, from its recipe."""
        themes = cell.args["target"]["themes"]
        words = {
            word
            for theme in themes
            for word in (theme["keywords"] or self.params.themes[theme["name"]].detailed)
        }
        roles: dict[tuple[str, str], int] = {}
        for item in cell.inputs:
            if item.step in ("images", "masks"):
                key = (item.where["theme"], item.where.get("role", "masked_images"))
                roles[key] = roles.get(key, 0) + self.needs.images(item)
        return _costs.Work(
            len(words), len(themes), max(roles.values(), default=0), len(cell.args["target"]["retain"])
        )

    # --- judging --------------------------------------------------------------------------------------------------------------

    def _score(self, cell: Cell, images: int) -> Job:
        chosen = self.plan.detectors[cell.where["detector"]]
        found = Job(images, reads=self._bytes(chosen.name))
        cost = self._judge(chosen.name)
        if cost:
            operations = images * (cost[0] + self.questions(cell) * cost[1])
            found.loads = [Load("judging", chosen.spec.dtype, operations)]
        return found

    def questions(self, cell: Cell) -> int:
        """How many different texts a judge is asked about every image of a cell."""
        known = id(cell.args)
        if known not in self._asked:
            chosen = self.plan.detectors[cell.where["detector"]]
            rules = {name: Rule(kind="joined", texts=texts) for name, texts in cell.args["texts"].items()}
            asked = chosen.detector.questions(cell.args["themes"], rules, cell.args["in_detail"])
            self._asked[known] = len(set(asked.values()))
        return self._asked[known]

    def _judge(self, name: str) -> tuple[float, float] | None:
        """Operations per image and per question of a detector."""
        if name not in self._judges:
            chosen = self.plan.detectors[name]
            path, revision = chosen.files["path"]
            kind = chosen.spec.kind
            if kind == "vqa":
                self._judges[name] = networks.vqa(path, revision, self.root)
            elif kind in ("clip", "q16", "mhsc", "safety_checker"):
                own = chosen.files.get("clip", (path, revision))
                self._judges[name] = (networks.clip_image(*own, self.root), 0.0)
            else:
                known = networks.per_image(kind)
                self._judges[name] = None if known is None else (known, 0.0)
            if self._judges[name] is None:
                self._say(
                    f"judging with {name}: nothing is known of the cost of kind {kind}; jobs and images are counted"
                )
        return self._judges[name]

    def _bytes(self, name: str) -> float:
        if name not in self._read:
            self._read[name] = self._weights(name)
        return self._read[name]

    def _weights(self, name: str) -> float:
        chosen = self.plan.detectors[name]
        sizes = [weights_bytes(path, revision, self.root) for path, revision in chosen.files.values()]
        if None not in sizes:
            return float(sum(map(int, filter(None, sizes))))
        return float(PARAMETERS.get(chosen.spec.kind, GIB // 4) * WIDTH[chosen.spec.dtype])

    def _measured(self, cell: Cell, images: int) -> Job:
        """Measures of quality, and masks."""
        if cell.step == "masks":
            name, dtype = "masks", str(cell.args["segmenter"].get("dtype", "float32"))
            if cell.args["segmenter"].get("kind") == "scenes":
                return Job(images)
        else:
            name, dtype = str(cell.args["measure"]["kind"]), "float32"
        cost = networks.per_image(name)
        if name == "clip_score":
            seen: Mapping[str, Any] = cell.args["measure"]["settings"]
            cost = networks.clip_image(seen["path"], seen.get("revision"), self.root)
        if cost is None:
            self._say(f"{cell.step} with {name}: nothing is known of its cost; jobs and images are counted")
            return Job(images)
        return Job(
            images, 0.0, [Load("judging", dtype, images * cost)], 4.0 * PARAMETERS.get(name, 400_000_000)
        )

    def _say(self, what: str) -> None:
        self.unknown[what] = None
