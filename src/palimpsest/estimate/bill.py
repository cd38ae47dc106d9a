"""The bill of an experiment: jobs, images, evaluations, hours of the device and disk, per stage and per method, whole and what is left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from palimpsest.cells import PATTERNS, Cell
from palimpsest.estimate.chips import Chip
from palimpsest.estimate.work import ON_DEVICE, Counter, Job
from palimpsest.plan.build import Plan
from palimpsest.specs import Source


@dataclass
class Amount:
    """What some cells take. evaluations: of the UNet, forward, of single samples. hours: of the device. disk: bytes."""

    jobs: int = 0
    images: int = 0
    evaluations: float = 0.0
    hours: float = 0.0
    disk: int = 0

    def add(self, other: Amount) -> None:
        self.jobs += other.jobs
        self.images += other.images
        self.evaluations += other.evaluations
        self.hours += other.hours
        self.disk += other.disk


@dataclass
class Row:
    """A stage, or a stage of one detector, measure or role; or a method. total: of all cells; remaining: of those not made yet."""

    name: str
    total: Amount = field(default_factory=Amount)
    remaining: Amount = field(default_factory=Amount)
    on_device: bool = True


@dataclass
class Bill:
    """stages, methods: rows in the order the data flows. variants: fitted or applied targets, without the base. unknown: what could
    not be counted, in words. missing: suites whose number of prompts nobody says.
    """

    experiment: str
    chip: Chip
    stages: list[Row]
    methods: list[Row]
    variants: int
    unknown: list[str]
    missing: list[str]

    @property
    def total(self) -> Amount:
        return _sum(row.total for row in self.stages)

    @property
    def remaining(self) -> Amount:
        return _sum(row.remaining for row in self.stages)

    def plain(self) -> dict[str, Any]:
        """As data for JSON."""
        return {
            **asdict(self),
            "total": asdict(self.total),
            "remaining": asdict(self.remaining),
        }


def _sum(amounts: Iterable[Amount]) -> Amount:
    found = Amount()
    for amount in amounts:
        found.add(amount)
    return found


def make(plan: Plan, chip: Chip, counter: Counter | None = None) -> Bill:
    """The bill of a plan on a chip; nothing is run, and no prompt is read where the settings say how many there are. counter: of an
    earlier bill of the same plan, so that nothing is counted twice.
    """
    counter = counter or Counter(plan)
    needed = {cell.path for cell in plan.needed()}
    stages: dict[str, Row] = {}
    methods: dict[str, Row] = {}
    for cell in plan.cells.values():
        job = counter.job(cell)
        amount = _amount(counter, chip, cell, job)
        rows = [stages.setdefault(_stage(cell), Row(_stage(cell), on_device=cell.step in ON_DEVICE))]
        if "method" in cell.where:
            name = f"{cell.where['method']}/{cell.where['preset']}"
            rows.append(methods.setdefault(name, Row(name)))
        for row in rows:
            mine = amount if row.name in stages else _of_method(cell, amount)
            row.total.add(mine)
            if cell.path in needed:
                row.remaining.add(mine)
    order = list(PATTERNS)
    ordered = sorted(stages.values(), key=lambda row: order.index(row.name.partition(" ")[0]))
    variants = {(cell.where["method"], cell.where["preset"], cell.where["variant"]) for cell in plan.cells.values()
                if cell.step == "generate" and cell.where["variant"] != "none"}  # fmt: skip
    return Bill(
        plan.params.experiment, chip, ordered, list(methods.values()), len(variants), list(counter.unknown), missing(plan)
    )  # fmt: skip


def _of_method(cell: Cell, amount: Amount) -> Amount:
    """A method's images are those it generates, not also those that are judged."""
    images = amount.images if cell.step == "generate" else 0
    return Amount(amount.jobs, images, amount.evaluations, amount.hours, amount.disk)


def _stage(cell: Cell) -> str:
    """The step, with the detector, measure or role where there are several."""
    for name in ("detector", "measure", "role"):
        if name in cell.where:
            return f"{cell.step} {cell.where[name]}"
    return cell.step


def _amount(counter: Counter, chip: Chip, cell: Cell, job: Job) -> Amount:
    hours = seconds(chip, job) / 3600 if cell.step in ON_DEVICE else 0.0
    return Amount(1, job.images, job.evaluations, hours, counter.disk(cell))


def seconds(chip: Chip, job: Job) -> float:
    """Seconds of the device for one job, with its start and the reading of weights."""
    busy = sum(chip.seconds(load.kind, load.dtype, load.operations, load.calls) for load in job.loads)
    return chip.start + job.reads / chip.read + busy


def missing(plan: Plan) -> list[str]:
    """Sources of prompts that are neither here nor counted in the settings, which then count as none."""

    def empty(source: Source) -> bool:
        return not source.rows and not (plan.root / source.path).is_file()

    return [
        f"suites.{name}.sources.{part}: {source.path} is not here; put it there, or say `rows:` (counted as 0)"
        for name, suite in plan.params.suites.items()
        for part, source in suite.sources.items()
        if empty(source)
    ]
