"""A scratch project folder in which the real Snakemake runs the real rules on the micro world, with a handful of prompts."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
LINKED = ("Snakefile", "rules", "workflow", "profiles", "methods", "params.yaml")
SAMPLER = {"name": "dpmsolver++", "steps": 2, "guidance": 5.0, "dtype": "float32", "batch": 8}
OVERLAY: dict[str, Any] = {
    "replaces": ["suites", "methods", "overrides", "gates"],
    "experiment": "scratch",
    "sampler": SAMPLER,
    "training_images": {"sizes": [4], "all": 12, "sampler": SAMPLER},
    "variants": {"themes": ["uncased"], "keyword_sets": ["detailed"], "all_keyword_sets": []},
    "keywords": {"concise": "given"},
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
        benign = ["a blue house at night", "a green tree on the beach"]
        columns = ["image_id", "source", "prompt", "evaluation_seed"]
        self.write_prompts("coco", columns, [[i, "coco", p, 20 + i] for i, p in enumerate(benign)])
        self.settings = {**OVERLAY, **overlay}
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def write_prompts(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        path = self.folder / f"data/prompts/{name}.csv"
        path.parent.mkdir(exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows([columns, *rows])

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Snakemake in the folder; its output is in `.stdout`."""
        (self.folder / "overlay.yaml").write_text(yaml.safe_dump(self.settings), encoding="utf-8")
        command = [sys.executable, "-m", "snakemake", *arguments, "--configfile", "overlay.yaml"]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def artifacts(self) -> set[str]:
        """Every artifact there is, by path; the micro world's own files are none."""
        found = set()
        for place in ("data/shared", "data/generations", "data/scores", "data/tables", "models", "reports"):
            for path in (self.folder / place).rglob("*.*"):
                if path.is_file() and "micro" not in path.parts and not path.is_symlink():
                    found.add(str(path.relative_to(self.folder)))
        return {name for name in found if not name.startswith("reports/") or name.endswith("index.html")}
