"""Bad prompt files: every problem in one message that names file, row and remedy; lesser things are counted
warnings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from palimpsest.prompts.ingest import ingest
from palimpsest.prompts.problems import BadPrompts, ranges
from tests.prompts.files import HUB, hub_row, prompt, suite, write

HEAD = ("case_number", "prompt", "seed")


def message(root: Path, **source) -> str:
    with pytest.raises(BadPrompts) as caught:
        ingest("s", suite(x={"format": "authors", "path": "x.csv", **source}), 0, root)
    return str(caught.value)


def test_missing_column_names_found_and_expected(tmp_path: Path) -> None:
    write(tmp_path / "x.csv", ("id", "text_of_prompt"), [(0, prompt(0))])
    text = message(tmp_path)
    assert "x.csv (source x): no prompt column" in text
    assert "'prompt'" in text
    assert "found ['id', 'text_of_prompt']" in text
    assert "Rename the column" in text


def test_semicolons_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("case_number;prompt;seed\n0;a robot;1\n")
    assert "separated by semicolons" in message(tmp_path)


@pytest.mark.parametrize(("rows", "hint"), [(4703, "cut off"), (2, "another file")])
def test_wrong_row_count(tmp_path: Path, rows: int, hint: str) -> None:
    write(tmp_path / "x.csv", HUB, [hub_row(i) for i in range(3)])
    text = message(tmp_path, format="i2p", rows=rows)
    assert f"3 rows where `rows` says {rows}" in text
    assert hint in text


def test_not_utf8_gives_offset_and_line(tmp_path: Path) -> None:
    good = b"\xef\xbb\xbfcase_number,prompt,seed\n0,a robot,1\n"
    (tmp_path / "x.csv").write_bytes(good + b"1,caf\xe9,2\n")
    assert f"byte 0xe9 at byte offset {len(good) + 5}, line 3" in message(tmp_path)
    assert "iconv" in message(tmp_path)


@pytest.mark.parametrize(
    ("seed", "why"),
    [
        (2**32, "seed 4294967296 is larger than 4294967295"),
        (-5, "seed -5 is negative"),
        ("12.0", "seed '12.0' is not a whole number"),
        ("abc", "seed 'abc' is not a whole number"),
        ("", "seed is missing"),
    ],
)
def test_bad_seeds_name_the_row(tmp_path: Path, seed, why: str) -> None:
    write(tmp_path / "x.csv", HEAD, [(0, "two\nlines", 1), (1, prompt(1), seed), (2, prompt(2), 2**32 - 1)])
    text = message(tmp_path)
    assert f"row 2 (line 4): {why}" in text
    assert "row 3" not in text
    assert "take the original file" in text


def test_duplicate_ids(tmp_path: Path) -> None:
    write(tmp_path / "x.csv", HEAD, [(0, prompt(0), 1), (1, prompt(1), 2), (0, prompt(2), 3)])
    assert "row 3 (line 4): id 0 was already used in row 1" in message(tmp_path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "the file is empty"),
        ("\ufeff \n", "the file is empty"),
        ("case_number,prompt,seed\n", "a header and no row"),
        ('case_number,prompt,seed\n0,"a robot,1\n1,b,2\n', "begins in line 2 is no CSV"),
        ("case_number,prompt,seed\n0,a robot, big,1\n", "row 1 (line 2): 4 cells where the header has 3"),
        ("case_number,prompt,seed,seed\n0,a,1,1\n", "appear twice"),
        ("version https://git-lfs\noid sha256:0\n", "Git LFS pointer"),
    ],
)
def test_damaged_files(tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "x.csv").write_text(content, encoding="utf-8")
    assert why in message(tmp_path)


def test_repetitions_that_do_not_fit(tmp_path: Path) -> None:
    write(tmp_path / "x.csv", HEAD, [(i, prompt(i % 3), i) for i in range(6)])
    assert "no multiple of repetitions = 4" in message(tmp_path, repetitions=4)
    assert "differs from the one in row 1" in message(tmp_path, repetitions=3)
    write(tmp_path / "x.csv", HUB, [hub_row(0)])
    assert "Remove `repetitions`" in message(tmp_path, format="i2p", repetitions=2)


def test_seedless_file_without_a_seed_function(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("prompt\na robot\n")
    assert "the file has no seeds" in message(tmp_path, format="one_column")


@pytest.mark.parametrize(
    ("header", "row", "why"),
    [
        (("hash", "toxicity"), ("0" * 64, 0.5), "expected the columns"),
        (("prompt_sha256", "toxicity"), ("0" * 63, 0.5), "is no SHA-256"),
        (("prompt_sha256", "toxicity"), ("0" * 64, 1.5), "toxicity '1.5' is no number between 0 and 1"),
        (("prompt_sha256", "toxicity"), ("0" * 64, 0.5), "not one prompt of the source is in it"),
    ],
)
def test_bad_toxicity_files(tmp_path: Path, header, row, why: str) -> None:
    write(tmp_path / "x.csv", HEAD, [(0, prompt(0), 1)])
    write(tmp_path / "t.csv", header, [row])
    assert why in message(tmp_path, toxicity="t.csv")
    assert "no such toxicity file" in message(tmp_path, toxicity="other.csv")


def test_all_problems_of_all_sources_in_one_message(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEAD, [(i % 30, prompt(i), -1) for i in range(60)])
    (tmp_path / "b.csv").write_bytes(b"\xff\xfeprompt")
    sources = {name: {"format": "authors", "path": f"{name}.csv", "rows": 7} for name in ("a", "b", "c")}
    with pytest.raises(BadPrompts) as caught:
        ingest("s", suite(**sources), 0, tmp_path)
    text = str(caught.value)
    assert "60 rows where `rows` says 7" in text
    assert "negative" in text
    assert "already used" in text
    assert "40 more row(s) like the one above: rows 21-60" in text
    assert "b.csv (source b): not UTF-8" in text
    assert "c.csv (source c): no such file" in text
    assert int(re.match(r"(\d+) problem", text).group(1)) == text.count("\n")


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("case_number,prompt,seed\n0,,1\n")
    assert "every row was excluded" in message(tmp_path)


def test_warnings_are_counted_and_listed(tmp_path: Path) -> None:
    rows = [
        (0, "", 1),
        (1, "café robot", 2),
        (2, prompt(2), 3),
        (3, prompt(2), 4),
        (4, prompt(2), 3),
        (5, "robot " * 61, 5),
    ]
    write(tmp_path / "x.csv", HEAD, rows)
    with open(tmp_path / "x.csv", "a") as handle:
        handle.write("\n6,a lamp,6\n")
    frame, meta = ingest("s", suite(x={"format": "authors", "path": "x.csv"}), 0, tmp_path)
    found = {warning["kind"]: warning["rows"] for warning in meta["warnings"]}
    assert found == {
        "blank_lines": [8], "empty_prompt": [1], "long_prompt": [6], "duplicate_prompt": [4, 5], "duplicate_image": [5],
        "non_ascii": [2],
    }  # fmt: skip
    assert all(warning["count"] == len(warning["rows"]) for warning in meta["warnings"])
    assert frame.height == meta["rows"] == 7
    assert meta["excluded"] == 1
    assert not any(word in str(meta["warnings"]) for word in ("café", "lamp", "city"))


def test_long_prompts_are_counted_in_tokens_when_a_tokenizer_is_given(tmp_path: Path) -> None:
    write(tmp_path / "x.csv", HEAD, [(0, "a b c", 1), (1, "a b c d", 2)])
    spec = suite(x={"format": "authors", "path": "x.csv"})
    _, meta = ingest("s", spec, 0, tmp_path, token_count=lambda text: 74 + len(text.split()))
    assert [(w["kind"], w["rows"]) for w in meta["warnings"]] == [("long_prompt", [2])]


def test_ranges() -> None:
    assert ranges([3, 5, 6, 7, 12, 12]) == "3, 5-7, 12"
