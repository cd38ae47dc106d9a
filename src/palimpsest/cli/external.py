"""`palimpsest external-template`: the list of prompts that images made elsewhere have to answer, made from the user's own prompt files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from palimpsest.params import Params

COLUMNS = (
    "suite", "image_id", "source", "prompt_id", "repetition", "prompt", "prompt_sha256", "file", "refused", "revised_prompt",
)  # fmt: skip
EMPTY = ("file", "refused", "revised_prompt")


class Refused(RuntimeError):
    """A manifest that cannot be written; the message says why."""


def write(params: Params, suites: Sequence[str], out: Path, root: Path) -> list[str]:
    """Write the manifest of some suites (all when none is named), with nothing filled in; returns what to say about it.

    A prompt that the gate of the prompt suites keeps from generators is not in it. Raises Refused for an unknown suite, missing or wrong
    prompt files, and a file that exists.
    """
    from palimpsest.prompts.ingest import ingest
    from palimpsest.prompts.problems import BadPrompts
    from palimpsest.sampling.noise import image_seed

    unknown = [name for name in suites if name not in params.suites]
    if unknown:
        raise Refused(f"no suite {unknown[0]!r}; allowed: {list(params.suites)}")
    if out.exists():
        raise Refused(f"{out} exists; nothing was written. Give another place with --out")
    if out.suffix != ".csv":
        raise Refused(f"{out} is no .csv; give a place that ends so with --out")
    rows, lines = [], []
    for name in suites or params.suites:
        try:
            frame, meta = ingest(name, params.suites[name], params.seed, root, image_seed=image_seed)
        except BadPrompts as error:
            raise Refused(str(error)) from error
        asked = frame.filter(gate="ok").to_dicts()
        rows += [[{**row, **dict.fromkeys(EMPTY, "")}[column] for column in COLUMNS] for row in asked]
        lines.append(f"{name}: {len(asked)} images to make, {meta['excluded']} rows kept back by the gate")
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "x", newline="", encoding="utf-8") as handle:
        csv.writer(handle, lineterminator="\n").writerows([COLUMNS, *rows])
    return [
        f"wrote {out}",
        *lines,
        "For every row give the image's path from that folder in `file`, or the reason of a refusal in `refused`.",
        "Then name the file in a settings file of methods/ with `method: external` (docs/closed-service.md).",
    ]
