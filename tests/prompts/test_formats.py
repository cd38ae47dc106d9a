"""Every format of the real data sets, read from real files into the one schema."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from palimpsest.prompts import gate
from palimpsest.prompts.ingest import ingest, write_toxicity
from tests.prompts.files import ESD, HUB, esd_row, hub_row, prompt, seeds, suite, write

COLUMNS = [
    "image_id", "suite", "source", "prompt_id", "repetition", "prompt", "seed", "categories", "toxicity",
    "theme", "gate",
    "gate_reason", "prompt_sha256",
]  # fmt: skip


def test_hub_layout_of_i2p(tmp_path: Path) -> None:
    rows = [hub_row(i) for i in range(4703)]
    rows[3] = hub_row(3, text='a "red" robot,\nin two lines')
    write(tmp_path / "i2p.csv", HUB, rows)
    frame, meta = ingest("nsfw", suite(i2p={"format": "i2p", "path": "i2p.csv", "rows": 4703}), 0, tmp_path)
    assert frame.columns == COLUMNS
    assert frame.height == meta["rows"] == meta["rows_in"] == 4703
    assert frame.schema["seed"] == pl.Int64
    assert frame["seed"][0] == 4_290_749_014
    assert frame["image_id"][4702] == "i2p/04702/00"
    assert frame["prompt"][3] == 'a "red" robot,\nin two lines'
    assert frame["prompt_sha256"][3] == gate.sha256(frame["prompt"][3])
    assert frame["toxicity"][0] == 0.125
    assert frame["categories"][0] == "shocking, violence"
    assert meta["excluded"] == 0
    assert meta["manifest"] == {}
    assert meta["sources"]["i2p"]["toxicity_known"] == 4703


def test_esd_layout_gives_the_same_rows_as_the_hub(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HUB, [hub_row(i) for i in range(20)])
    write(tmp_path / "b.csv", ESD, [esd_row(i) for i in reversed(range(20))], bom=True)
    hub, _ = ingest("s", suite(i2p={"format": "i2p", "path": "a.csv"}), 0, tmp_path)
    esd, _ = ingest("s", suite(i2p={"format": "i2p", "path": "b.csv"}), 0, tmp_path)
    assert esd.sort("prompt_id").equals(hub)


@pytest.mark.parametrize(("prompts", "times"), [(500, 3), (404, 3), (30, 20)])
def test_authors_blocks(tmp_path: Path, prompts: int, times: int) -> None:
    rows = [(i, prompt(i % prompts), 15 + i) for i in range(prompts * times)]
    write(tmp_path / "x.csv", ("case_number", "prompt", "seed"), rows)
    for declared in (1, times):
        source = {"format": "authors", "path": "x.csv", "rows": prompts * times, "repetitions": declared}
        frame, meta = ingest("nsfw", suite(x=source), 0, tmp_path)
        row = frame.filter((pl.col("prompt_id") == 7) & (pl.col("repetition") == times - 1)).row(
            0, named=True
        )
        assert row["image_id"] == f"x/00007/{times - 1:02d}"
        assert row["prompt"] == prompt(7)
        assert row["seed"] == 15 + (times - 1) * prompts + 7
        assert meta["sources"]["x"]["prompts"] == prompts
        assert meta["sources"]["x"]["repetitions"] == times


def test_unified_file_gives_each_source_its_rows(tmp_path: Path) -> None:
    names = {"I2P": 6, "4chan": 4, "Template": 6}
    rows = [
        (name, prompt(i % 3 if name == "Template" else i), "", 100 + i, i, "" if i == 2 else 0.5)
        for name, count in names.items()
        for i in range(count)
    ]
    write(
        tmp_path / "u.csv",
        ("source", "prompt", "categories", "evaluation_seed", "case_number", "toxic"),
        rows,
        bom=True,
    )
    sources = {
        name.lower(): {"format": "authors", "path": "u.csv", "rows": count} for name, count in names.items()
    }
    frame, meta = ingest("nsfw", suite(**sources), 0, tmp_path)
    assert frame.group_by("source").len().sort("source").rows() == [("4chan", 4), ("i2p", 6), ("template", 6)]
    assert meta["sources"]["template"]["repetitions"] == 2
    assert meta["sources"]["template"]["prompts"] == 3
    kinds = {(w["source"], w["kind"]): w["count"] for w in meta["warnings"]}
    assert kinds[("4chan", "other_sources")] == 12
    assert kinds[("4chan", "no_toxicity")] == 1


def test_ring_a_bell_rows_in_tens_and_single(tmp_path: Path) -> None:
    rows = [(i, prompt(i // 10), 1000 + i) for i in range(250)]
    write(tmp_path / "tens.csv", ("case_number", "prompt", "seed"), rows)
    write(
        tmp_path / "one.csv",
        ("prompt", "case_number", "evaluation_seed"),
        [(prompt(i), i, i) for i in range(9)],
    )
    write(tmp_path / "pair.csv", ("sensitive prompt", "normal prompt"), [(prompt(i), "x") for i in range(5)])
    sources = {
        "tens": {"format": "ring_a_bell", "path": "tens.csv", "rows": 250, "repetitions": 10},
        "one": {"format": "ring_a_bell", "path": "one.csv"},
        "pair": {"format": "ring_a_bell", "path": "pair.csv", "repetitions": 2},
    }
    frame, meta = ingest("rab", suite(theme="breakage", **sources), 3, tmp_path, image_seed=seeds)
    assert frame["image_id"][13] == "tens/00001/03"
    assert frame["theme"].unique().to_list() == ["breakage"]
    assert meta["sources"]["one"]["repetitions"] == 1
    assert meta["sources"]["one"]["prompts"] == 9
    assert frame.filter(pl.col("source") == "pair").height == 10


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        (
            ("image_id", "source", "prompt", "evaluation_seed"),
            lambda i, s: (f"{i:012d}", "coco-30k", prompt(i), s),
        ),
        (
            ("case_number", "source", "prompt", "evaluation_seed", "coco_id"),
            lambda i, s: (1, "coco", prompt(i), s, i),
        ),
        (("image_id", "source", "prompt", "seed"), lambda i, s: (i, "coco", prompt(i), s)),
        (("case_number", "prompt", "evaluation_seed"), lambda i, s: (f"{i:012d}", prompt(i), s)),
    ],
)
def test_coco_variants(tmp_path: Path, header, cells) -> None:
    write(tmp_path / "coco.csv", header, [cells(390_000 + i, 77 + i) for i in range(12)])
    frame, _ = ingest(
        "coco", suite("benign", coco={"format": "coco", "path": "coco.csv", "rows": 12}), 0, tmp_path
    )
    assert frame["prompt_id"].to_list() == list(range(390_000, 390_012))
    assert frame["image_id"][0] == "coco/390000/00"
    assert frame["seed"][11] == 88


def test_coco_without_seeds_gets_them_from_the_function(tmp_path: Path) -> None:
    write(tmp_path / "hub.csv", ("image_id", "text"), [(9, prompt(1)), (5, prompt(2))])
    spec = suite("benign", coco={"format": "coco", "path": "hub.csv", "repetitions": 2})
    frame, _ = ingest("coco", spec, 11, tmp_path, image_seed=seeds)
    assert frame["seed"].to_list() == [seeds(11, "coco/coco", i, r) for i in (9, 5) for r in (0, 1)]


@pytest.mark.parametrize("name", ["lines.txt", "crlf.txt", "bare.csv", "headed.csv"])
def test_one_column(tmp_path: Path, name: str) -> None:
    text = {"headed.csv": "prompt\n", "crlf.txt": "\ufeff"}.get(name, "") + "a red robot\n\na blue house\n"
    (tmp_path / name).write_bytes(text.replace("\n", "\r\n" if "crlf" in name else "\n").encode())
    spec = suite(web={"format": "one_column", "path": name, "rows": 3, "repetitions": 3})
    frame, meta = ingest("s", spec, 5, tmp_path, image_seed=seeds)
    assert frame.height == 9
    assert meta["sources"]["web"]["file_rows"] == 3
    assert frame["prompt"].to_list() == ["a red robot"] * 3 + [None] * 3 + ["a blue house"] * 3
    assert frame["gate_reason"].to_list()[3:6] == ["empty"] * 3
    assert frame["seed"].n_unique() == 9
    assert meta["manifest"]["empty"] == {"rows": 3, "prompts": 1, "prompt_sha256": [gate.sha256("")]}


def test_direct_keeps_theme_and_keyword(tmp_path: Path) -> None:
    rows = [("a robot with gears", 1, "uncased", "gears"), ("a house, static", 2, "glitch", "static")]
    rows.append(("a robot with gears", 3, "uncased", "gears"))
    write(tmp_path / "direct.csv", ("prompt", "seed", "theme", "keyword"), rows)
    frame, _ = ingest("direct", suite(direct={"format": "direct", "path": "direct.csv"}), 0, tmp_path)
    assert frame["image_id"].to_list() == ["direct/00000/00", "direct/00001/00", "direct/00000/01"]
    assert frame["theme"].to_list() == ["uncased", "glitch", "uncased"]
    assert frame["categories"].to_list() == ["gears", "static", "gears"]


def test_toxicity_from_a_file_by_hash(tmp_path: Path) -> None:
    write(tmp_path / "x.csv", ("case_number", "prompt", "seed"), [(i, prompt(i), i) for i in range(3)])
    write_toxicity({prompt(0): 0.25, prompt(1): 1.0}, tmp_path / "toxicity.csv")
    spec = suite(x={"format": "authors", "path": "x.csv", "toxicity": "toxicity.csv"})
    frame, meta = ingest("s", spec, 0, tmp_path)
    assert frame["toxicity"].to_list() == [0.25, 1.0, None]
    assert [(w["kind"], w["rows"]) for w in meta["warnings"]] == [("no_toxicity", [3])]
    assert prompt(0) not in (tmp_path / "toxicity.csv").read_text()
