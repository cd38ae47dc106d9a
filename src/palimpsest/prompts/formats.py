"""The real file formats of prompt suites, read into one kind of entry.

- i2p: both layouts of I2P: the hub's (`sd_seed`, no ids) and the ESD family's (`evaluation_seed`,
  `case_number`).
- authors: `case_number, prompt, seed` (or `evaluation_seed`), repetitions as blocks: case_number = repetition
  * prompts + prompt; also the unified file, whose column `source` says which of several suites a row belongs
  to.
- ring_a_bell: adversarial prompts with the repetitions of a prompt in consecutive rows, or one row per
  prompt.
- coco: captions whose id is `coco_id`, `image_id` or `case_number`, zero-padded or not.
- one_column: one prompt per line (.txt) or per cell (.csv, with or without a header); ids and seeds are made
  here.
- direct: `prompt, seed, theme, keyword`: keyword prompts of known theme.
Facts: README and files of the repositories named in docs/prompts.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from palimpsest import specs
from palimpsest.prompts.problems import Log, Row
from palimpsest.prompts.reading import Table, read_csv, read_lines

PROMPT_HEADERS = ("prompt", "prompts", "text", "caption", "sensitive prompt")
SEED_HEADERS = ("evaluation_seed", "sd_seed", "seed")
TOXICITY_HEADERS = ("prompt_toxicity", "toxic", "toxicity")
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Entry:
    """One image to ask for. seed and toxicity are None where the file has none; sexual: the file itself says
    so."""

    row: Row
    prompt_id: int
    repetition: int
    prompt: str
    seed: int | None
    categories: str = ""
    toxicity: float | None = None
    theme: str | None = None
    sexual: bool = False


def parse(path: Path, source: specs.Source, log: Log) -> list[Entry]:
    """Read one source. Everything wrong goes to `log`; the result is complete only when `log.errors` stayed
    empty."""
    if source.format == "one_column":
        table = (
            read_lines(path, log)
            if path.suffix.lower() == ".txt"
            else read_csv(path, log, headers=PROMPT_HEADERS)
        )
    else:
        table = read_csv(path, log)
    if table is None:
        return []
    table = _own_rows(table, log)
    _count(table, source, log)
    prompt = _need(table, "prompt", PROMPT_HEADERS, log)
    if prompt is None:
        return []
    return _READERS[source.format](table, prompt, source, log)


def _own_rows(table: Table, log: Log) -> Table:
    """The rows of a unified file that belong to this source: those whose `source` cell equals the source's
    name."""
    names = sorted({row.cells["source"] for row in table.rows}) if "source" in table.columns else []
    if len(names) < 2:
        return table
    mine = tuple(row for row in table.rows if row.cells["source"].strip().casefold() == log.source.casefold())
    if not mine:
        log.error(
            f"no row with source {log.source!r}; the file has sources {names}. Name the source in the "
            f"settings like one of them"
        )
    others = [
        row.number for row in table.rows if row.cells["source"].strip().casefold() != log.source.casefold()
    ]
    log.warn("other_sources", others, f"{len(others)} row(s) belong to other sources of this file ({names})")
    return Table(table.columns, mine)


def _count(table: Table, source: specs.Source, log: Log) -> None:
    if source.rows is not None and len(table.rows) != source.rows:
        cause = (
            "the file was probably cut off while it was copied"
            if len(table.rows) < source.rows
            else "it is another file"
        )
        log.error(
            f"{len(table.rows)} rows where `rows` says {source.rows}: {cause}. Fetch it again, or correct "
            f"`rows` in the settings"
        )


def _need(table: Table, role: str, names: Sequence[str], log: Log) -> str | None:
    name = table.has(*names)
    if name is None:
        found = list(table.columns)
        hint = ""
        if len(found) == 1 and any(sign in found[0] for sign in ";\t"):
            hint = " The header seems to be separated by semicolons or tabs: save the file with commas."
        log.error(
            f"no {role} column. Expected one of {list(names)}, found {found}.{hint} Rename the column or "
            f"correct `format`"
        )
    return name


def _numbers(table: Table, name: str, role: str, largest: int, log: Log) -> list[int]:
    """Whole numbers of a column in [0, largest]; bad cells are logged and come back as -1."""
    numbers, bad = [], []
    for row in table.rows:
        text = row.cells[name].strip()
        why = ""
        if not text:
            why = f"{role} is missing"
        elif re.fullmatch(r"-[0-9]+", text):
            why = f"{role} {text} is negative"
        elif not re.fullmatch(r"[0-9]+", text):
            why = f"{role} {text!r} is not a whole number"
        elif int(text) > largest:
            why = f"{role} {text} is larger than {largest}"
        if why:
            bad.append((row, why))
        numbers.append(-1 if why else int(text))
    kind = (
        "Seeds are whole numbers that fit 32 bits without sign"
        if role == "seed"
        else f"Give a whole number as {role}"
    )
    log.row_errors(bad, f"{kind} (column {name!r}); spreadsheets often spoil them, so take the original file")
    return numbers


def _seeds(table: Table, log: Log, required: bool = True) -> list[int] | list[None]:
    name = _need(table, "seed", SEED_HEADERS, log) if required else table.has(*SEED_HEADERS)
    return [None] * len(table.rows) if name is None else _numbers(table, name, "seed", LARGEST_SEED, log)


def _unique(table: Table, name: str, ids: Sequence[int], log: Log) -> None:
    first: dict[int, Row] = {}
    again = []
    for row, number in zip(table.rows, ids, strict=True):
        if number >= 0 and number in first:
            again.append((row, f"id {number} was already used in row {first[number].number}"))
        first.setdefault(number, row)
    log.row_errors(
        again, f"Ids (column {name!r}) are unique within a source; remove the copies or number the rows again"
    )


def _share(table: Table, name: str | None, log: Log, scale: float = 1.0) -> list[float | None]:
    """Numbers of an optional column in [0, scale]; empty cells are None."""
    if name is None:
        return [None] * len(table.rows)
    values: list[float | None] = []
    bad = []
    for row in table.rows:
        text = row.cells[name].strip()
        try:
            value = float(text) if text and text.lower() != "nan" else None
        except ValueError:
            value = math.nan
        if value is not None and not 0 <= value <= scale:
            bad.append((row, f"{name} {text!r} is no number between 0 and {scale:g}"))
        values.append(value)
    log.row_errors(bad, "Correct the cell or leave it empty")
    return values


def _entries(
    table: Table, prompt: str, ids: Sequence[int], seeds: Sequence[int | None], log: Log
) -> list[Entry]:
    toxicity = _share(table, table.has(*TOXICITY_HEADERS), log)
    category = table.has("categories")
    return [
        Entry(row, number, 0, row.cells[prompt], seed, row.cells[category] if category else "", toxic)
        for row, number, seed, toxic in zip(table.rows, ids, seeds, toxicity, strict=True)
    ]


def _only_once(source: specs.Source, log: Log) -> None:
    if source.repetitions != 1:
        log.error(
            f"repetitions is {source.repetitions}, but the format {source.format!r} has a seed in every row. "
            "Remove `repetitions` from this source"
        )


def _i2p(table: Table, prompt: str, source: specs.Source, log: Log) -> list[Entry]:
    _only_once(source, log)
    case = table.has("case_number")
    ids = _numbers(table, case, "id", 10**9, log) if case else list(range(len(table.rows)))
    _unique(table, case or "", ids, log)
    entries = _entries(table, prompt, ids, _seeds(table, log), log)
    nudity = _share(table, table.has("nudity_percentage"), log, scale=100.0)
    return [
        replace(entry, sexual=bool(share) or "sexual" in entry.categories.lower())
        for entry, share in zip(entries, nudity, strict=True)
    ]


def _repeats(
    entries: list[Entry], declared: int, apart: Callable[[int, int], tuple[int, int]], found: int, log: Log
) -> list[Entry]:
    """Split positions into (prompt, repetition) with `apart(position, repetitions)` and check that
    repetitions repeat the prompt."""
    times = declared if declared > 1 else found
    if len(entries) % times:
        log.error(
            f"{len(entries)} rows are no multiple of repetitions = {times}. Correct `repetitions` or fetch "
            f"the file again"
        )
        return entries
    texts: dict[int, Entry] = {}
    split, wrong = [], []
    for position, entry in enumerate(entries):
        number, repetition = apart(position, times)
        first = texts.setdefault(number, entry)
        if entry.prompt != first.prompt:
            wrong.append(
                (
                    entry.row,
                    f"the prompt differs from the one in row {first.row.number}, which it should repeat",
                )
            )
        split.append(replace(entry, prompt_id=number, repetition=repetition))
    log.row_errors(
        wrong,
        f"With repetitions = {times} both rows ask for the same prompt; correct `repetitions` or the file",
    )
    return split


def _period(prompts: Sequence[str]) -> int:
    """How often a list of prompts repeats as a block: the largest k such that it is k times its first len/k
    prompts."""
    count = len(prompts)
    return next(
        k
        for k in range(count, 0, -1)
        if count % k == 0 and all(p == prompts[i % (count // k)] for i, p in enumerate(prompts))
    )


def _authors(table: Table, prompt: str, source: specs.Source, log: Log) -> list[Entry]:
    case = table.has("case_number")
    ids = _numbers(table, case, "id", 10**9, log) if case else list(range(len(table.rows)))
    _unique(table, case or "", ids, log)
    entries = sorted(_entries(table, prompt, ids, _seeds(table, log), log), key=lambda entry: entry.prompt_id)
    if log.errors or not entries:
        return entries
    if [entry.prompt_id for entry in entries] != list(range(len(entries))):
        if source.repetitions > 1:
            log.error(
                f"case numbers are not 0 to {len(entries) - 1}, so blocks of repetitions = "
                f"{source.repetitions} cannot be told apart. "
                "Take the complete file, or remove `repetitions` to count every row as a prompt of its own"
            )
        return entries
    found = _period([entry.prompt for entry in entries])

    def apart(position: int, times: int) -> tuple[int, int]:
        size = len(entries) // times
        return position % size, position // size

    return _repeats(entries, source.repetitions, apart, found, log)


def _ring_a_bell(table: Table, prompt: str, source: specs.Source, log: Log) -> list[Entry]:
    case = table.has("case_number")
    ids = _numbers(table, case, "id", 10**9, log) if case else list(range(len(table.rows)))
    _unique(table, case or "", ids, log)
    seeds = _seeds(table, log, required=False)
    entries = _entries(table, prompt, ids, seeds, log)
    if table.has(*SEED_HEADERS) is None:
        return _made(entries, source.repetitions)
    runs: list[list[Entry]] = []
    for entry in entries:
        if runs and runs[-1][0].prompt == entry.prompt:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    found = math.gcd(*(len(run) for run in runs)) or 1
    return _repeats(entries, source.repetitions, lambda position, times: divmod(position, times), found, log)


def _coco(table: Table, prompt: str, source: specs.Source, log: Log) -> list[Entry]:
    name = _need(table, "id", ("coco_id", "image_id", "case_number"), log)
    if name is None:
        return []
    ids = _numbers(table, name, "id", 10**12, log)
    _unique(table, name, ids, log)
    entries = _entries(table, prompt, ids, _seeds(table, log, required=False), log)
    if table.has(*SEED_HEADERS) is None:
        return _made(entries, source.repetitions)
    _only_once(source, log)
    return entries


def _made(entries: list[Entry], repetitions: int) -> list[Entry]:
    return [replace(entry, repetition=again) for entry in entries for again in range(repetitions)]


def _one_column(table: Table, prompt: str, source: specs.Source, log: Log) -> list[Entry]:
    entries = _entries(table, prompt, range(len(table.rows)), [None] * len(table.rows), log)
    return _made(entries, source.repetitions)


def _direct(table: Table, prompt: str, source: specs.Source, log: Log) -> list[Entry]:
    _only_once(source, log)
    theme, keyword = _need(table, "theme", ("theme",), log), _need(table, "keyword", ("keyword",), log)
    numbers: dict[str, int] = {}
    seen: dict[int, int] = {}
    entries = []
    for entry in _entries(table, prompt, [0] * len(table.rows), _seeds(table, log), log):
        number = numbers.setdefault(entry.prompt, len(numbers))
        seen[number] = seen.get(number, -1) + 1
        cells = entry.row.cells
        own = (cells[theme].strip() or None) if theme else None
        word = cells[keyword].strip() if keyword else ""
        entries.append(replace(entry, prompt_id=number, repetition=seen[number], theme=own, categories=word))
    return entries


_READERS: dict[str, Callable[[Table, str, specs.Source, Log], list[Entry]]] = {
    "i2p": _i2p,
    "authors": _authors,
    "ring_a_bell": _ring_a_bell,
    "coco": _coco,
    "one_column": _one_column,
    "direct": _direct,
}
