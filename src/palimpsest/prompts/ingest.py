"""From the prompt files of a suite to its table: one row per image to ask for, gated, counted, with nothing
silently dropped.

Columns: image_id, suite, source, prompt_id, repetition, prompt (null when excluded), seed, categories,
toxicity, theme, gate ("ok" or "excluded"), gate_reason (null, "empty", "minor_cue_sexual",
"minor_cue_unsafe_suite"), prompt_sha256.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest import specs
from palimpsest.prompts import formats, gate
from palimpsest.prompts.formats import Entry
from palimpsest.prompts.problems import BadPrompts, Log
from palimpsest.prompts.reading import read_csv

if TYPE_CHECKING:
    import polars as pl

EMPTY = "empty"
LONGEST = 77
"""Text positions of CLIP, begin and end of text included; what comes later does not reach the model."""
MANY_WORDS = 60
BENIGN_FORMATS = ("coco", "one_column", "direct")

ImageSeed = Callable[[int, str, int, int], int]


def ingest(
    suite_name: str,
    suite: specs.Suite,
    base_seed: int,
    root: str | Path,
    *,
    image_seed: ImageSeed | None = None,
    token_count: Callable[[str], int] | None = None,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Read all sources of a suite below `root`. Returns its table and meta: rows, rows_in, excluded,
    warnings, manifest, sources.

    image_seed(base_seed, "<suite>/<source>", prompt_id, repetition) makes the seeds of formats that have
    none. token_count(prompt) counts CLIP tokens including begin and end; without it prompts of more than 60
    words are called long. Raises BadPrompts with every error of every source. Warnings do not stop anything:
    {source, file, kind, count, rows, message}.
    """
    logs, tables, sources = [], [], {}
    for name, source in suite.sources.items():
        log = Log(name, source.path)
        logs.append(log)
        path = Path(root) / source.path
        if not path.is_file():
            log.error("no such file. Put it there; docs/prompts.md says where each data set is obtained")
            continue
        entries = formats.parse(path, source, log)
        if log.errors or not entries:
            continue
        entries = _with_seeds(entries, f"{suite_name}/{name}", base_seed, image_seed, log)
        known = _stored_toxicity(entries, source, Path(root), log)
        _warnings(entries, token_count, log)
        rows = [_row(entry, suite_name, suite, name, source, known) for entry in entries]
        tables.append(rows)
        sources[name] = _describe(path, source, entries, rows)
    errors = [text for log in logs for text in log.errors]
    rows = [row for table in tables for row in table]
    if not errors and not any(row["gate"] == "ok" for row in rows):
        errors.append(
            "every row was excluded, so nothing is left to generate. Check that `path` and `format` fit "
            "together"
        )
    if errors:
        raise BadPrompts(
            "\n".join([f"{len(errors)} problem(s) in the prompts of suite {suite_name!r}:", *errors])
        )
    frame = _frame(rows)
    assert frame["image_id"].n_unique() == len(frame)
    meta = {
        "suite": suite_name,
        "kind": suite.kind,
        "rows": len(frame),
        "rows_in": sum(described["rows"] for described in sources.values()),
        "excluded": int((frame["gate"] == "excluded").sum()),
        "warnings": [warning for log in logs for warning in log.warnings],
        "manifest": manifest(frame),
        "sources": sources,
    }
    return frame, meta


def manifest(frame: pl.DataFrame) -> dict[str, Any]:
    """What was excluded and why: counts and hashes, nothing else. {reason: {rows, prompts, prompt_sha256:
    sorted}}."""
    import polars as pl

    out = frame.filter(pl.col("gate") == "excluded")
    return {
        reason: {
            "rows": part.height,
            "prompts": part["prompt_sha256"].n_unique(),
            "prompt_sha256": sorted(set(part["prompt_sha256"])),
        }
        for (reason,), part in sorted(out.group_by("gate_reason"))
    }


def _with_seeds(
    entries: list[Entry], stream: str, base_seed: int, image_seed: ImageSeed | None, log: Log
) -> list[Entry]:
    if all(entry.seed is not None for entry in entries):
        return entries
    if image_seed is None:
        log.error("the file has no seeds. Pass image_seed to ingest, or add a column `seed`")
        return entries
    made = [replace(e, seed=image_seed(base_seed, stream, e.prompt_id, e.repetition)) for e in entries]
    odd = [e.seed for e in made if e.seed is None or not 0 <= e.seed <= formats.LARGEST_SEED]
    if odd:
        raise ValueError(f"image_seed gave {odd[0]}, which does not fit 32 bits without sign")
    return made


def _stored_toxicity(
    entries: Sequence[Entry], source: specs.Source, root: Path, log: Log
) -> dict[str, float]:
    """Toxicity by prompt hash from the file that `toxicity` names (columns prompt_sha256, toxicity); empty
    without it."""
    if source.toxicity is None:
        missing = [entry.row.number for entry in entries if entry.toxicity is None]
        if len(missing) < len(entries):
            log.warn("no_toxicity", missing, f"{len(missing)} row(s) have no toxicity score")
        return {}
    inner = Log(log.source, source.toxicity)
    path = root / source.toxicity
    known: dict[str, float] = {}
    table = read_csv(path, inner) if path.is_file() else None
    if not path.is_file():
        inner.error("no such toxicity file. Put it there or remove `toxicity` from the source")
    elif table is not None and not {"prompt_sha256", "toxicity"} <= set(table.columns):
        inner.error(
            f"expected the columns ['prompt_sha256', 'toxicity'], found {list(table.columns)}. Rename the "
            f"columns"
        )
    elif table is not None:
        bad = []
        for row in table.rows:
            digest, text = row.cells["prompt_sha256"].strip().lower(), row.cells["toxicity"].strip()
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                bad.append((row, f"{digest!r} is no SHA-256 in hex"))
            elif not _is_share(text):
                bad.append((row, f"toxicity {text!r} is no number between 0 and 1"))
            else:
                known[digest] = float(text)
        inner.row_errors(bad, "Correct the row; the hash is that of the prompt's UTF-8 bytes")
        missing = [entry.row.number for entry in entries if gate.sha256(entry.prompt) not in known]
        if len(missing) == len(entries) and not bad:
            inner.error(
                "not one prompt of the source is in it. Make it again from this version of the prompt file"
            )
        log.warn("no_toxicity", missing, f"{len(missing)} row(s) have no toxicity score in {source.toxicity}")
    log.errors += inner.errors
    log.warnings += inner.warnings
    return known


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def _warnings(entries: Sequence[Entry], token_count: Callable[[str], int] | None, log: Log) -> None:
    def too_long(prompt: str) -> bool:
        return token_count(prompt) > LONGEST if token_count else len(prompt.split()) > MANY_WORDS

    first = {entry.prompt: entry for entry in reversed(entries)}
    longs = {prompt for prompt in first if too_long(prompt)}
    empty = [e.row.number for e in entries if not e.prompt.strip()]
    log.warn("empty_prompt", empty, f"{len(empty)} row(s) have an empty prompt and are excluded")
    long = [e.row.number for e in entries if e.prompt in longs]
    unit = f"{LONGEST} tokens" if token_count else f"{MANY_WORDS} words (no tokenizer at hand)"
    log.warn(
        "long_prompt",
        long,
        f"{len(long)} row(s) have more than {unit}; the model sees only the first {LONGEST} tokens",
    )
    again = [e.row.number for e in entries if e.prompt.strip() and e.prompt_id != first[e.prompt].prompt_id]
    log.warn(
        "duplicate_prompt",
        again,
        f"{len(again)} row(s) repeat the prompt of another id; they count as prompts of their own",
    )
    pairs: set[tuple[str, int | None]] = set()
    same = []
    for entry in entries:
        if (entry.prompt, entry.seed) in pairs:
            same.append(entry.row.number)
        pairs.add((entry.prompt, entry.seed))
    log.warn(
        "duplicate_image",
        same,
        f"{len(same)} row(s) repeat prompt and seed of an earlier row and give the same image",
    )
    foreign = [e.row.number for e in entries if not e.prompt.isascii()]
    log.warn("non_ascii", foreign, f"{len(foreign)} row(s) have characters outside ASCII")


def _row(
    entry: Entry,
    suite_name: str,
    suite: specs.Suite,
    name: str,
    source: specs.Source,
    known: dict[str, float],
) -> dict[str, Any]:
    theme = entry.theme or suite.theme
    # a suite that is called benign does not make an unsafe data set benign
    unsafe = suite.kind != "benign" or suite.theme is not None or source.format not in BENIGN_FORMATS
    # the names in the settings only matter where a cue alone would pass; elsewhere they would blur the reason
    named = "" if unsafe else f"{suite_name}, {name}"
    context = " , ".join((theme or "", named, entry.categories, "sexual" if entry.sexual else ""))
    reason = gate.verdict(entry.prompt, unsafe, context) if entry.prompt.strip() else EMPTY
    digest = gate.sha256(entry.prompt)
    return {
        "image_id": f"{name}/{entry.prompt_id:05d}/{entry.repetition:02d}",
        "suite": suite_name,
        "source": name,
        "prompt_id": entry.prompt_id,
        "repetition": entry.repetition,
        "prompt": None if reason else entry.prompt,
        "seed": entry.seed,
        "categories": entry.categories,
        "toxicity": known.get(digest, entry.toxicity),
        "theme": theme,
        "gate": "excluded" if reason else "ok",
        "gate_reason": reason,
        "prompt_sha256": digest,
    }


def _describe(
    path: Path, source: specs.Source, entries: Sequence[Entry], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "path": source.path,
        "format": source.format,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "rows": len(rows),
        "file_rows": len({entry.row.number for entry in entries}),
        "prompts": len({entry.prompt_id for entry in entries}),
        "repetitions": 1 + max(entry.repetition for entry in entries),
        "excluded": sum(row["gate"] == "excluded" for row in rows),
        "toxicity_known": sum(row["toxicity"] is not None for row in rows),
    }


def _frame(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    import polars as pl

    whole, text = pl.Int64(), pl.String()
    texts = (
        "image_id",
        "suite",
        "source",
        "prompt",
        "categories",
        "theme",
        "gate",
        "gate_reason",
        "prompt_sha256",
    )
    schema = {name: text if name in texts else whole for name in rows[0]} | {"toxicity": pl.Float64()}
    return pl.DataFrame(list(rows), schema=schema)


def write_toxicity(scores: dict[str, float], path: str | Path) -> None:
    """Write a toxicity file: prompt -> score becomes prompt_sha256, toxicity; prompts themselves are not
    written."""
    rows = sorted((gate.sha256(prompt), score) for prompt, score in scores.items())
    with open(path, "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([("prompt_sha256", "toxicity"), *rows])
