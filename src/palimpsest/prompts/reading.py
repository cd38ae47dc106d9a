"""From the bytes of a prompt file to rows of named cells, with a stated error for everything that is no
proper UTF-8 table."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from palimpsest.prompts.problems import Log, Row

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Table:
    """The rows of one file. columns: stripped, lower case, in file order; empty for plain text."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def has(self, *names: str) -> str | None:
        """The first of these columns that the file has."""
        return next((name for name in names if name in self.columns), None)


def decode(path: Path, log: Log) -> str | None:
    """The text of a UTF-8 file, without its byte order mark; None after logging an error."""
    data = path.read_bytes()
    if data.startswith(b"version https://git-lfs"):
        log.error(
            "this is a Git LFS pointer, not the file itself. Run `git lfs pull` where the file came from "
            "and copy it again"
        )
        return None
    start = len(BOM) if data.startswith(BOM) else 0
    if not data[start:].strip():
        log.error("the file is empty. Put the complete file in its place")
        return None
    try:
        return data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + start
        line = data.count(b"\n", 0, offset) + 1
        log.error(
            f"not UTF-8: byte 0x{data[offset]:02x} at byte offset {offset}, line {line}. "
            "Convert it first, for example `iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW`"
        )
        return None


def read_lines(path: Path, log: Log) -> Table | None:
    """Plain text, one prompt per line, no header. Blank lines are rows with an empty prompt."""
    text = decode(path, log)
    if text is None:
        return None
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return Table(
        ("prompt",), tuple(Row(number, number, {"prompt": line}) for number, line in enumerate(lines, 1))
    )


def _records(text: str, log: Log) -> list[tuple[int, list[str]]] | None:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: list[tuple[int, list[str]]] = []
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return records
        except csv.Error as error:
            log.error(
                f"the record that begins in line {line} is no CSV ({error}). Usual causes: a quotation mark "
                f"that is never closed, "
                "or a file cut off while it was copied; fetch it again or quote the prompt properly"
            )
            return None
        records.append((line, record))


def read_csv(path: Path, log: Log, headers: tuple[str, ...] = ()) -> Table | None:
    """A CSV file with a header; newlines inside quotes are part of the cell.

    headers: given for one-column files, where a first cell that is none of these names is data, not a header,
    and blank lines are empty prompts; elsewhere blank lines are no rows and are counted in a warning. None
    after logging an error.
    """
    text = decode(path, log)
    records = _records(text, log) if text is not None else None
    if records is None:
        return None
    columns = tuple(cell.strip().lower() for cell in records[0][1])
    if headers and not set(columns) & set(headers):
        columns = ("prompt",)
    else:
        records = records[1:]
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        log.error(f"column(s) {twice} appear twice in the header {list(columns)}. Keep one of each")
        return None
    rows: list[Row] = []
    ragged: list[tuple[Row, str]] = []
    blank: list[int] = []
    for line, cells in records:
        if not cells and headers and len(columns) == 1:
            cells = [""]
        if not cells:
            blank.append(line)
            continue
        row = Row(len(rows) + len(ragged) + 1, line, dict(zip(columns, cells, strict=False)))
        if len(cells) == len(columns):
            rows.append(row)
        else:
            ragged.append((row, f"{len(cells)} cells where the header has {len(columns)}"))
    log.row_errors(
        ragged, "Put prompts that contain commas between quotation marks, or save one prompt per line as .txt"
    )
    log.warn("blank_lines", blank, f"{len(blank)} blank line(s) between rows hold no row")
    if not rows and not ragged:
        log.error("the file has a header and no row. Put the complete file in its place")
    return Table(columns, tuple(rows)) if rows and not ragged else None
