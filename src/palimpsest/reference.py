"""Where the published tables lie, and whether an experiment is the published one, so that its numbers may stand beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palimpsest.params import Params, Rule

REFERENCE = Path("data/reference")
FILES = ("study.json", "paper_tables.csv", "paper_counts.csv", "paper_methods.csv", "paper_confusion.csv")


def is_published(params: Params, root: Path = Path(".")) -> bool:
    """Whether an experiment has the published study's model, themes with their keywords, judge and rule, and at least one of its suites."""
    path = root / REFERENCE / "study.json"
    if not path.is_file():
        return False
    study = json.loads(path.read_text(encoding="utf-8"))
    themes = {name: list(theme.detailed) for name, theme in params.themes.items()}
    judge = params.detectors[params.judge]
    rule, how = next(iter(params.rules.items()))
    same = (
        params.model.path == study["model"]
        and themes == study["themes"]
        and judge.path == study["judge_path"]
        and rule == study["rule"]
        and how == Rule(**study["judged_by"])
    )
    return same and bool(same_suites(params, study))


def same_suites(params: Params, study: Mapping[str, Any]) -> list[str]:
    """The suites that an experiment and the published study have in common: kind, theme, and the rows of every source."""
    found = []
    for name, suite in params.suites.items():
        published = study["suites"].get(name)
        if published:
            rows = {source: (spec.rows or 0) * spec.repetitions for source, spec in suite.sources.items()}
            own = (suite.kind, suite.theme, rows)
            if own == (published["kind"], published["theme"], published["sources"]):
                found.append(name)
    return found
