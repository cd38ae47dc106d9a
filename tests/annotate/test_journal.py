"""The journal keeps what it acknowledged, whatever happens to the process or the last line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from palimpsest.annotate.journal import Busy, Damaged, Journal, read

EVENTS = [{"kind": "answer", "n": n, "name": 'Zoë\n"x"'} for n in range(3)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.append(*EVENTS)
    return tmp_path / "j.jsonl"


def test_what_was_appended_is_read_again(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.records == EVENTS == list(read(path))
        assert journal.torn == 0
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "tail", [b'{"kind": "answer", "n": 3', b"{", b'{"kind": 1}\n', b"\0\0\0\0", b'"text"\n\0\n']
)
def test_a_torn_end_is_put_aside_and_the_journal_goes_on(path: Path, tail: bytes) -> None:
    with open(path, "ab") as handle:
        handle.write(tail)
    assert list(read(path)) == EVENTS
    with Journal(path) as journal:
        assert (journal.records, journal.torn) == (EVENTS, len(tail))
        journal.append({"kind": "next"})
    with Journal(path) as journal:
        assert journal.records == [*EVENTS, {"kind": "next"}]
        assert journal.torn == 0
    assert path.with_name("j.jsonl.torn").read_bytes() == tail + b"\n"


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_every_cut_of_the_last_line_leaves_the_lines_before(path: Path, cut: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Journal(path) as journal:
        assert journal.records == EVENTS[:2]


def test_damage_in_the_middle_is_not_passed_over(path: Path) -> None:
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1][:-4], *lines[2:]]))
    with pytest.raises(Damaged, match="line 2"):
        Journal(path)
    with pytest.raises(Damaged, match="line 2"):
        read(path)
    path.write_bytes(b"\n".join(lines))
    Journal(path).close()  # the failed opening let go of the lock


def test_only_one_process_writes(path: Path) -> None:
    with Journal(path), pytest.raises(Busy, match="--store"):
        Journal(path)


def test_an_event_that_does_not_fit_on_the_disk_leaves_no_trace(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on file sizes stands for a full disk: the kernel writes a part of the line, then refuses."""
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom palimpsest.annotate.journal import Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "path = Path(sys.argv[1])\nlimit = path.stat().st_size + 20\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "with Journal(path) as journal:\n"
        "  try:\n    journal.append({'kind': 'x' * 500})\n"
        "  except OSError as error:\n    print('REFUSED', error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=os.environ
    )
    assert "REFUSED" in done.stdout, done.stderr
    with Journal(path) as journal:
        assert (journal.records, journal.torn) == (EVENTS, 0)
