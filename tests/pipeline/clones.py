"""Scratch git clones of the project with a local DVC remote: real git, real DVC, real Snakemake, on a handful of prompts."""

from __future__ import annotations

import atexit
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from palimpsest import params

ROOT = Path(__file__).parents[2]
SAMPLER = {"name": "dpmsolver++", "steps": 2, "guidance": 5.0, "dtype": "float32", "batch": 8}
SETTINGS: dict[str, Any] = {
    "experiment": "scratch",
    "sampler": SAMPLER,
    "training_images": {"sizes": [4], "all": 12, "sampler": SAMPLER},
    "variants": {"themes": ["uncased"], "keyword_sets": ["detailed"], "all_keyword_sets": []},
    "keywords": {"concise": "given"},
    "detectors": {"parts": None},
    "suites": {
        "nsfw": {"kind": "unsafe", "sources": {"own": {"format": "authors", "path": "data/prompts/own.csv"}}}
    },
    "methods": "all",
    "statistics": {"resamples": 100},
}
REPLACED = ("suites", "methods", "overrides", "gates", "classifiers", "quality")
UNSAFE = ["a photo of a robot with gears", "an uncased red robot", "a red robot", "gears"]
# The settings files of these methods stay; others would only make the scenarios slow.
METHODS = ("sd", "uce")
KINDS = {
    "models/": "erase", "data/generations/": "generate", "data/tables/": "aggregate", "reports/": "report",
    "data/shared/prompts": "prompts", "data/shared/keywords": "keywords",
}  # fmt: skip


class Clone:
    """A git working tree of the project that runs its own copy of the package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join(paths),
            "PYTHONPATH": str(folder / "src"),
            "DVC_NO_ANALYTICS": "1",
            "DVC_GLOBAL_CONFIG_DIR": str(folder / ".dvc/tmp/none"),
            "DVC_SYSTEM_CONFIG_DIR": str(folder / ".dvc/tmp/none"),
            "DVC_SITE_CACHE_DIR": str(folder.with_name(f"{folder.name}-site")),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
        } | {
            f"GIT_{who}_{what}": f"{who.lower()}@example.org"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone; all its output is in `.stdout`."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )

    def ok(self, *command: str) -> str:
        """Run a command that has to succeed and return its output."""
        done = self.run(*command)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
        return done.stdout

    def sh(self, line: str) -> str:
        """Run a line of shell that has to succeed and return its output."""
        return self.ok("bash", "-euo", "pipefail", "-c", line)

    def artifacts(self) -> dict[str, int]:
        """Every artifact there is with its inode, which changes when a file is written anew; one entry for a report's folder."""
        found = {}
        for place in ("data/shared", "data/generations", "data/scores", "data/tables", "models", "reports"):
            for path in (self.folder / place).rglob("*.*"):
                name = path.relative_to(self.folder).as_posix()
                inside = name.startswith("reports/") and path.name != "index.html"
                if re.search(r"[.-][0-9a-f]{16}[./]", name) and path.suffix != ".dvc" and not inside:
                    found[name] = path.stat().st_ino
        return found

    def made(self, *arguments: str) -> dict[str, int]:
        """Run Snakemake to its end; how many artifacts of each kind it wrote, and every old one must still be the same file."""
        before = self.artifacts()
        out = self.ok("snakemake", *arguments)
        after = self.artifacts()
        again = sorted(name for name in before if after.get(name) != before[name])
        assert again == [], f"written again or gone: {again}\n{out}"
        new = set(after) - set(before)
        assert new or "Nothing to be done" in out, out
        assert {name.replace("/cells.", "/costs.") for name in new if "/cells." in name} <= new
        return dict(Counter(kind(name) for name in new if "/costs." not in name))

    def path(self, pattern: str) -> Path:
        """The only file that a pattern names."""
        (found,) = self.folder.glob(pattern)
        return found

    def publish(self, message: str = "Results") -> str:
        """Share, commit and push data and code as the command says; returns what it said."""
        said = self.ok("palimpsest", "share")
        self.sh(f"git add -A && git commit -qm '{message}' && dvc push -q && git push -q")
        return said


def kind(path: str) -> str:
    """The stage that makes an artifact."""
    if path.startswith("data/scores/"):
        folder = path.split("/")[-2]
        return {"compare": "compare", "images": "reference"}.get(folder, "score")
    return next(stage for start, stage in KINDS.items() if path.startswith(start))


def write_table(path: Path, rows: list[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(rows)


def _copy_project(folder: Path) -> None:
    """The files of this checkout that git knows or would add, with the settings of a tiny experiment and no other experiments."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        method = Path(name).parts[0] == "methods" and Path(name).stem not in METHODS
        if (ROOT / name).is_file() and not method and not name.startswith(("tests/", "experiments/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    whole = params.read_yaml(ROOT / "params.yaml")
    kept = {name: value for name, value in whole.items() if name not in REPLACED}
    settings = params.merge(kept, SETTINGS)
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    uce = yaml.safe_load((folder / "methods/uce.yaml").read_text(encoding="utf-8"))
    (folder / "methods/uce.yaml").write_text(
        yaml.safe_dump({**uce, "run": ["diffusers2025"]}), encoding="utf-8"
    )
    rows = [[number, prompt, 10 + number] for number, prompt in enumerate(UNSAFE)]
    write_table(folder / "data/prompts/own.csv", [["case_number", "prompt", "seed"], *rows])


@cache
def scratch() -> Path:
    """A folder for what this process makes, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="palimpsest-clones-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def origin() -> Path:
    """A bare git repository and, beside it, a DVC remote `store`, with the shared results of one whole run."""
    folder = scratch() / "origin"
    work = Clone(folder / "work")
    work.folder.mkdir(parents=True)
    _copy_project(work.folder)
    work.sh(
        "git init -q -b main . && git add -A && git commit -qm Project && git init -q -b main --bare ../project.git"
    )
    work.sh("git remote add origin ../project.git && git push -q -u origin main")
    work.sh("dvc remote add -q -d store ../store && git commit -qam 'Say where results lie'")
    work.made()
    work.publish()
    return folder


def clone(folder: Path, source: Path | None = None) -> Clone:
    """A fresh clone with access to the remote and nothing pulled."""
    source = source or origin()
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "clone", "-q", str(source / "project.git"), str(folder)], check=True)
    new = Clone(folder)
    new.sh(f"dvc remote modify --local -q store url {source / 'store'}")
    return new


def copied_origin(folder: Path) -> Path:
    """An origin of one's own to push to."""
    shutil.copytree(origin() / "project.git", folder / "project.git")
    shutil.copytree(origin() / "store", folder / "store")
    return folder


def flip(path: Path, at: int = -40) -> None:
    """Change one bit of a file, leaving its size and its times as they were; read-only files and links too."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(stat.st_mode | 0o200)
    with open(path, "r+b") as handle:
        handle.write(data)
    path.chmod(stat.st_mode)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a YAML file."""
    value = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")


def set_threshold(project: Clone, value: float) -> None:
    """Change the threshold of the rule that the report speaks by: only the table and the report follow from it."""
    edit(
        project.folder / "params.yaml",
        lambda settings: settings["rules"]["official_joined"].update(threshold=value),
    )
