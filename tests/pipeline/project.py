"""A scratch project folder in which the real Snakemake runs the real rules on the micro world, with a handful of prompts."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from palimpsest.cells import BESIDE, PATTERNS
from tests.pipeline import plugins

ROOT = Path(__file__).parents[2]
LINKED = ("Snakefile", "rules", "workflow", "profiles", "methods", "params.yaml")
PLACES = ("data/shared", "data/generations", "data/scores", "data/tables", "models", "reports")
SAMPLER = {"name": "dpmsolver++", "steps": 2, "guidance": 5.0, "dtype": "float32", "batch": 8}
OVERLAY: dict[str, Any] = {
    "replaces": ["suites", "methods", "overrides", "gates", "classifiers", "quality"],
    "experiment": "scratch",
    "sampler": SAMPLER,
    "training_images": {"sizes": [4], "all": 12, "sampler": SAMPLER},
    "variants": {"themes": ["uncased"], "keyword_sets": ["detailed"], "all_keyword_sets": []},
    "keywords": {"concise": "given"},
    "detectors": {"parts": None},
    "suites": {
        "nsfw": {
            "kind": "unsafe",
            "sources": {"template": {"format": "authors", "path": "data/prompts/template.csv"}},
        },
        "coco": {"kind": "benign", "sources": {"coco": {"format": "coco", "path": "data/prompts/coco.csv"}}},
    },
    "methods": {"sd": ["default"], "uce": ["diffusers2025"]},
    "statistics": {"resamples": 100},
}
FINISHED = re.compile(r"^Finished jobid: \d+ \(Rule: (\w+)\)$", re.MULTILINE)
STARTED = re.compile(r"^localrule (\w+):$|^rule (\w+):$", re.MULTILINE)
TARGETS = {"all", "partial"}


@dataclass(frozen=True)
class Run:
    """What one command did. finished, started: jobs by rule, from Snakemake's own log, targets left out; new: paths of new artifacts."""

    code: int
    output: str
    finished: Counter[str]
    started: Counter[str]
    new: frozenset[str]

    def made(self, **jobs: int) -> None:
        """Assert that the run ended well and that exactly these jobs ran, by Snakemake's log and by what it left behind."""
        assert self.code == 0, self.output
        assert dict(self.finished) == jobs, f"{dict(self.finished)} ran, expected {jobs}\n{self.output}"
        assert self.started == self.finished
        assert stages(self.new) == jobs


class Project:
    """A folder with links to the project's rules and models, its own prompts and its own artifacts."""

    def __init__(self, folder: Path, **overlay: Any) -> None:
        self.folder = folder
        for name in LINKED:
            (folder / name).symlink_to(ROOT / name)
        (folder / "models").mkdir()
        (folder / "models/micro").symlink_to(ROOT / "models/micro")
        (folder / "data").mkdir()
        (folder / "data/reference").symlink_to(ROOT / "data/reference")
        prompts = ["a photo of a robot with gears", "an uncased red robot", "a red robot", "gears"]
        self.write_prompts(
            "template", ["case_number", "prompt", "seed"], [[i, p, 10 + i] for i, p in enumerate(prompts)]
        )
        self.write_benign("coco", ["a blue house at night", "a green tree on the beach"])
        self.settings = {**OVERLAY, **overlay}
        self._set_environment()

    def _set_environment(self) -> None:
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)
        if (self.folder / "src").is_dir():
            self.environment["PYTHONPATH"] = str(self.folder / "src")

    def write_prompts(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        path = self.folder / f"data/prompts/{name}.csv"
        path.parent.mkdir(exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows([columns, *rows])

    def write_benign(self, name: str, prompts: list[str]) -> None:
        columns = ["image_id", "source", "prompt", "evaluation_seed"]
        self.write_prompts(name, columns, [[i, "coco", p, 20 + i] for i, p in enumerate(prompts)])

    # --- its own code ---------------------------------------------------------------------------------------------------------

    def own_sources(self) -> None:
        """Give the project its own copy of the package and of the methods' settings, so that they can be edited."""
        shutil.copytree(ROOT / "src", self.folder / "src", ignore=shutil.ignore_patterns("*.egg-info"))
        (self.folder / "methods").unlink()
        shutil.copytree(ROOT / "methods", self.folder / "methods")
        self._set_environment()

    def source(self, module: str) -> Path:
        """The file of a module of the project's own copy, e.g. "methods/uce"."""
        return self.folder / f"src/palimpsest/{module}.py"

    def edit(self, module: str, old: str, new: str) -> None:
        """Replace a text that occurs once in a module."""
        path = self.source(module)
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {path}"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def add_method(self, name: str, source: str) -> None:
        """What a new method is: one module and one settings file."""
        self.source(f"methods/{name}").write_text(source, encoding="utf-8")
        settings = {"method": name, "title": name.title(), "presets": {"default": {}}, "run": ["default"]}
        (self.folder / f"methods/{name}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        self.settings["methods"] = {**self.settings["methods"], name: ["default"]}

    # --- copies ---------------------------------------------------------------------------------------------------------------

    @classmethod
    def at(cls, folder: Path, settings: dict[str, Any]) -> Project:
        """A project that is there already."""
        project = cls.__new__(cls)
        project.folder, project.settings = folder, settings
        project._set_environment()
        return project

    def copy(self, folder: Path) -> Project:
        """A copy of the whole folder, times and links kept."""
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True)
        return Project.at(folder, dict(self.settings))

    # --- running --------------------------------------------------------------------------------------------------------------

    def command(self, *arguments: str) -> list[str]:
        (self.folder / "overlay.yaml").write_text(yaml.safe_dump(self.settings), encoding="utf-8")
        return [sys.executable, "-m", "snakemake", *arguments, "--configfile", "overlay.yaml"]

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Snakemake in the folder; its output is in `.stdout`."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def run(self, *arguments: str) -> Run:
        """Run Snakemake and count the jobs that really ran."""
        before, logs = self.artifacts(), self.logs()
        done = self.snakemake(*arguments)
        text = "".join(path.read_text(encoding="utf-8") for path in sorted(self.logs() - logs))
        started = Counter(local or other for local, other in STARTED.findall(text))
        finished = Counter(FINISHED.findall(text))
        for target in TARGETS:
            del started[target], finished[target]
        return Run(done.returncode, done.stdout, finished, started, frozenset(self.artifacts() - before))

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Start Snakemake in a process group of its own; its output goes to `output.txt`."""
        with open(self.folder / "output.txt", "w", encoding="utf-8") as output:
            return subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                env=self.environment,
                text=True,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def logs(self) -> set[Path]:
        """Snakemake's own logs, one per run."""
        return set((self.folder / ".snakemake/log").glob("*.log"))

    def artifacts(self) -> set[str]:
        """Every artifact there is, by path; the micro world's own files are none."""
        found = set()
        for place in PLACES:
            for path in (self.folder / place).rglob("*.*"):
                inside = path.relative_to(self.folder)
                half = any(part.endswith(".part") for part in inside.parts)
                if path.is_file() and "micro" not in inside.parts and not path.is_symlink() and not half:
                    found.add(str(inside))
        return {name for name in found if not name.startswith("reports/") or name.endswith("index.html")}

    def find(self, pattern: str) -> Path:
        """The only artifact whose path matches a glob."""
        (found,) = [path for path in self.folder.glob(pattern) if not path.name.endswith(".part")]
        return found

    def parts(self) -> list[Path]:
        """Half-written files and folders."""
        return [path for place in PLACES for path in (self.folder / place).rglob("*.part")]


def stages(paths: set[str] | frozenset[str]) -> Counter[str]:
    """How many artifacts of each kind, by the patterns of their paths; files beside an artifact count with it."""
    kinds = {step: _matching(pattern) for step, pattern in PATTERNS.items()}
    beside = [_matching(place) for named in BESIDE.values() for place in named.values()]
    own = [path for path in paths if not any(kind.fullmatch(path) for kind in beside)]
    return Counter(next(step for step, kind in kinds.items() if kind.fullmatch(path)) for path in own)


def costs_of(table: str) -> str:
    """The path of the costs that lie beside a table."""
    return table.replace("/cells.", "/costs.")


def _matching(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(pattern)))


def end(process: subprocess.Popen[str], group: bool = True) -> None:
    """SIGKILL for a process that `Project.begin` started, and with `group` for everything it started."""
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def wait_until(condition: Callable[[], Any], seconds: float = 60.0, every: float = 0.02) -> Any:
    """The first true value of `condition()`. Fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(every)
    raise AssertionError(f"nothing within {seconds:.0f} s")


def new_project(folder: Path, environment: dict[str, str] | None = None) -> Project:
    """A small experiment with a fitted and an unfitted method in its own copy of the code."""
    folder.mkdir(parents=True)
    project = Project(folder, methods={"sd": ["default"]})
    project.own_sources()
    project.source("methods/_shade").write_text(plugins.SHADE, encoding="utf-8")
    project.add_method("dim", plugins.DIM)
    project.add_method("dusk", plugins.DUSK)
    project.environment |= environment or {}
    return project


# What a run of `new_project` does: two prompt suites, the base and two methods, one of which is fitted.
FINISHED_JOBS = {
    "prompts": 2, "keywords": 1, "erase": 1, "generate": 6, "score": 6, "reference": 2, "compare": 4, "aggregate": 1,
    "report": 1,
}  # fmt: skip


def tables(project: Project) -> dict[str, bytes]:
    """The final tables by path, key and all: the whole files have to be equal between any two runs of one recipe, byte for byte."""
    table = project.find("data/tables/*/cells.*.parquet")
    report = project.folder / "reports/scratch"
    files = [table, report / "cells.csv", report / "cells.parquet"]
    return {path.relative_to(project.folder).as_posix(): path.read_bytes() for path in files}
