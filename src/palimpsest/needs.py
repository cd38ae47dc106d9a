"""What cells need of a machine: bytes on disk, main memory, GPU memory, time. Upper bounds to plan with, in no key and no result."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from palimpsest import packaged
from palimpsest.cells import Cell
from palimpsest.params import Params
from palimpsest.plan.build import Plan
from palimpsest.segmenters import registry as segmenters
from palimpsest.specs import Suite
from palimpsest.weights import snapshot

MIB = 1 << 20
GIB = 1 << 30
# Parameters of a whole checkpoint (text encoders, U-Net, autoencoder) by architecture, for checkpoints that are not here yet.
PARAMETERS = {"sd1": 1_066_000_000, "sd2": 1_290_000_000, "sdxl": 3_470_000_000}
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
# Stored bytes of a PNG per byte of pixels: generated pictures are noisy, so little is saved.
PNG = 0.6
ROW = 1024  # of a score table, all questions together
COPY = 2048  # of a small copy of a picture on a sheet
HEAD = 16 * 1024  # recipe and description of any artifact
PROCESS = (
    2560 * MIB
)  # torch, diffusers and transformers loaded, and the two snakemakes of a scheduler's job, each with a large plan
# Activations while one image is made with guidance, per pixel of the image and byte of a number (512 x 512 in float32: about 1 GiB).
ACTIVATIONS = 1024
# Optimizer state, gradients and a frozen copy beside the weights, in float32.
TRAINING = 4
# Activations of the networks that make masks, which take one image at a time at a size of their own.
MASKS = 4 * GIB
# Seconds for one sampling step of one 512 x 512 image on a slow GPU.
STEP = 0.4
LIGHT = (
    "prompts", "keywords", "reference", "compare", "quality_table", "aggregate", "classifiers", "report",
)  # fmt: skip


class Needs:
    """The needs of one plan's cells. Files are looked at once, so an object is for one moment."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.params: Params = plan.params
        self.root = plan.root
        self._counted: dict[Path, int] = {}

    # --- counts ----------------------------------------------------------------------------------------------------------------

    def images(self, cell: Cell) -> int:
        """How many images a cell makes, judges, reduces or compares; 0 for cells without images."""
        if cell.step in ("generate", "score", "reference", "compare", "quality"):
            suite = self.params.suites[cell.where["suite"]]
            return max(0, min(suite.shard, self.rows(suite) - int(cell.where["shard"]) * suite.shard))
        if cell.step == "real":
            return self.rows(self.params.suites[cell.where["suite"]])
        if cell.step in ("images", "masks"):
            return int(cell.args["stop"]) - int(cell.args["start"])
        if cell.step == "suppression":  # every keyword prompted alone, and with every keyword suppressed
            words = len(cell.args["keywords"])
            return words * (words + 1) * int(cell.args["seeds"])
        if cell.step == "renders":
            return int(cell.args["count"])
        if cell.step == "gates":
            gates = self.params.gates
            tables = [path for path in gates.get("files", []) if str(path).endswith(".csv")]
            repeated = sum(self._lines(path) for path in tables) * int(gates.get("benign_seeds", 1))
            return int(gates.get("renders", 0)) + repeated
        return 0

    def rows(self, suite: Suite) -> int:
        """Number of prompts of a suite: as its settings declare, else as many as its files have."""
        return sum((s.rows or self._lines(s.path)) * s.repetitions for s in suite.sources.values())

    def _lines(self, path: str) -> int:
        place = self.root / path
        if place not in self._counted:
            self._counted[place] = _lines(place)
        return self._counted[place]

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of the model under test. A checkpoint is taken to be stored in 16 bits: rather too many than too few."""
        size = weights_bytes(self.params.model.path, self.params.model.revision, self.root)
        return size // 2 if size else PARAMETERS[self.params.model.architecture]

    # --- disk ------------------------------------------------------------------------------------------------------------------

    def disk(self, cells: Iterable[Cell]) -> dict[str, int]:
        """Bytes that these cells will write, by step: as large as the artifacts of the same kind that are here, else by constants."""
        found: dict[str, int] = {}
        for cell in cells:
            known = self._measured.get(_kind(cell))
            size = known * self._units(cell) if known else self._bound(cell)
            found[cell.step] = found.get(cell.step, 0) + math.ceil(size)
        return found

    def _units(self, cell: Cell) -> int:
        return max(1, self.images(cell))

    @cached_property
    def _measured(self) -> dict[tuple[str, ...], float]:
        """Bytes per image (or per artifact, where there are none) of what this experiment has made so far; of fits, the largest."""
        sums: dict[tuple[str, ...], list[float]] = {}
        for cell in self.plan.cells.values():
            path = self.root / cell.path
            if cell.step in ("report", "aggregate") or not path.is_file():
                continue
            size, kind = path.stat().st_size, _kind(cell)
            before = sums.setdefault(kind, [0.0, 0.0])
            if cell.step == "erase":
                sums[kind] = [max(before[0], size), 1.0]
            else:
                sums[kind] = [before[0] + size, before[1] + self._units(cell)]
        return {kind: size / units for kind, (size, units) in sums.items()}

    def _bound(self, cell: Cell) -> float:
        from palimpsest.metrics.drift import LARGEST  # loads numpy, which a plan does without

        picture = 3 * self.params.model.resolution**2 * PNG
        count, pairs = self.images(cell), self.params.report.pairs
        copies = 2 * min(count or self.params.report.thumbnails, self.params.report.thumbnails) * COPY
        if cell.step in ("generate", "images", "masks"):
            return HEAD + count * picture
        if cell.step == "erase":  # at most the whole U-Net in float32, which is most of a checkpoint
            return HEAD + 4 * self.parameters
        small = 3 * min(self.params.model.resolution, LARGEST) ** 2 * PNG
        if cell.step == "reference":
            return HEAD + count * small
        if cell.step == "compare":
            return HEAD + count * ROW + 4 * pairs * small + copies
        if cell.step == "report":
            compared = sum(c.step == "compare" for c in cell.inputs)
            return 4 * MIB + 2 * pairs * compared * small + compared * copies
        if cell.step in ("quality", "real"):  # two sets of 2048 float32 features per picture at most
            return HEAD + count * (ROW + 2 * 2048 * 4)
        if cell.step == "prompts":
            count = self.rows(self.params.suites[cell.where["suite"]])
        if cell.step == "aggregate":
            count = 9 * len(cell.inputs)  # rows of the table, and one of what each input cost
        return HEAD + count * ROW

    # --- memory ----------------------------------------------------------------------------------------------------------------

    @cached_property
    def gpu_memory(self) -> dict[str, int | None]:
        """Bytes of GPU memory that the heaviest jobs need: making images, fitting, each judge. None: not known before the download."""
        sampler, pixels = self.params.sampler, self.params.model.resolution**2
        width = WIDTH[sampler.dtype]
        found: dict[str, int | None] = {
            "making images": self.parameters * width + ACTIVATIONS * pixels * width * sampler.batch,
            "fitting": self.parameters * 4 * TRAINING + 2 * ACTIVATIONS * pixels * 4,
        }
        for name, judge in self.plan.detectors.items():
            sizes = [weights_bytes(path, revision, self.root) for path, revision in judge.files.values()]
            size = None if None in sizes else sum(filter(None, sizes))
            found[f"judge {name}"] = None if size is None else size + size // 4
        if any(cell.step == "masks" for cell in self.plan.cells.values()):
            found |= self._segmenter
        return found

    @cached_property
    def _segmenter(self) -> dict[str, int | None]:
        """Bytes that making masks takes; nothing where they come from a file."""
        chosen = segmenters.chosen(self.params)
        if chosen.segmenter.INFO.reads == "file":
            return {}
        sizes = [weights_bytes(path, revision, self.root) for path, revision in chosen.files.values()]
        return {"making masks": None if None in sizes else sum(map(int, filter(None, sizes))) + MASKS}

    def memory_mb(self, cell: Cell) -> int:
        """Main memory of a job in MiB: the process, the checkpoint twice (as it is read and as it is used), a batch where no GPU has it."""
        size = PROCESS
        if cell.step in LIGHT:
            size += 2 * MIB * len(cell.inputs)
        if cell.step in ("score", "renders", "suppression", "gates"):
            size += 2 * max(value or 0 for name, value in self.gpu_memory.items() if name.startswith("judge"))
        if cell.step in ("quality", "real"):
            size += 2 * max((weights_bytes(path, None, self.root) or 0 for path in cell.raw), default=0)
        if cell.step == "masks":
            size += 2 * (self._segmenter.get("making masks") or 0)
        if cell.step in ("generate", "images", "suppression", "gates", "erase"):
            size += 4 * self.parameters * (TRAINING if cell.step == "erase" else 2)
            batch = min(self._units(cell), self.params.sampler.batch)
            size += batch * ACTIVATIONS * self.params.model.resolution**2
        return math.ceil(size / MIB)

    # --- time ------------------------------------------------------------------------------------------------------------------

    def minutes(self, cell: Cell) -> int:
        """A time limit for a job: half an hour to start and to end, and twice what a slow GPU needs for the images."""
        share = (self.params.model.resolution / 512) ** 2
        if cell.step in LIGHT:
            return 60
        if cell.step == "erase":
            return 30 + math.ceil(360 * min(1.0, 16 * share))
        light = ("score", "renders", "masks", "quality", "real")
        steps = 10 if cell.step in light else self.params.sampler.steps
        return 30 + math.ceil(2 * self.images(cell) * steps * STEP * share / 60)


def _kind(cell: Cell) -> tuple[str, ...]:
    """Cells whose artifacts are alike: fits of one method and preset, anything else of one step."""
    return (cell.step, cell.where["method"], cell.where["preset"]) if cell.step == "erase" else (cell.step,)


def _lines(path: Path) -> int:
    """Number of data rows of a table of prompts; 0 when it is not there."""
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as handle:
            return max(0, sum(1 for _ in csv.reader(handle)) - 1)
    except OSError:
        return 0


def weights_bytes(path: str, revision: str | None, root: Path) -> int | None:
    """Bytes of a checkpoint's files, local or in the hub cache; None when they are not here."""
    place = packaged.find(path) or root / path
    if not place.exists():
        place = snapshot(path, revision)
    if place.is_file():
        return place.stat().st_size
    sizes = [p.stat().st_size for kind in ("*.safetensors", "*.bin") for p in place.rglob(kind)]
    return sum(sizes) or None
