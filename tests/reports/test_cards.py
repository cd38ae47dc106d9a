"""Result cards: structure by the rules of each format, and numbers that are those of the tables."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import fake_inputs
import polars as pl
import pytest
import yaml

from palimpsest.reports import cards, select
from palimpsest.reports.inputs import ReportInputs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def described(report: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((report / cards.CROISSANT).read_text(encoding="utf-8"))
    return found


def test_croissant_has_what_the_specification_asks_for(described: dict[str, Any], report: Path) -> None:
    assert (
        described["@type"] == "sc:Dataset" and described["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    )
    for key in (
        "@context",
        "name",
        "description",
        "license",
        "url",
        "creator",
        "datePublished",
        "distribution",
        "recordSet",
    ):
        assert described[key], key
    # every word that is used is schema.org's, or mapped to where it comes from
    used = set(re.findall(r'"(\w+)": ', json.dumps(described)))
    mapped = {
        name
        for name, value in described["@context"].items()
        if str(value).startswith(("cr:", "dct:", "{'@id'"))
    }
    schema = {"name", "alternateName", "description", "license", "url", "creator", "datePublished", "distribution", "version",
              "keywords", "contentUrl", "contentSize", "encodingFormat", "sha256"}  # fmt: skip
    assert used - mapped - schema - {"sc", "cr", "dct"} == set()
    ids = [f["@id"] for f in described["distribution"]]
    for item in described["distribution"]:
        data = (report / item["contentUrl"]).read_bytes()
        assert item["@type"] == "cr:FileObject" and item["sha256"] == hashlib.sha256(data).hexdigest()
        assert item["contentSize"] == f"{len(data)} B"
    for records in described["recordSet"]:
        assert records["@type"] == "cr:RecordSet" and records["field"]
        for field in records["field"]:
            assert field["@type"] == "cr:Field" and field["dataType"] in (
                "sc:Text",
                "sc:Integer",
                "sc:Float",
                "sc:Boolean",
            )
            assert field["source"]["fileObject"]["@id"] in ids
            assert field["@id"] == f"{records['@id']}/{field['source']['extract']['column']}"
    every = [
        *ids,
        *(r["@id"] for r in described["recordSet"]),
        *(f["@id"] for r in described["recordSet"] for f in r["field"]),
    ]
    assert len(every) == len(set(every))


def test_fields_are_the_columns_of_the_files(described: dict[str, Any], report: Path) -> None:
    for records in described["recordSet"]:
        name = records["field"][0]["source"]["fileObject"]["@id"]
        if name.endswith(".csv"):
            columns = next(csv.reader((report / name).open(encoding="utf-8")))
        else:
            columns = pl.read_parquet_schema(report / name)
        assert [field["name"] for field in records["field"]] == list(columns)
    assert {
        field["description"] for r in described["recordSet"] for field in r["field"] if field["name"] == "ep"
    } == {"definition ep/1"}


def test_eval_results_hold_the_keys_that_the_hub_knows_and_our_numbers(
    inputs: ReportInputs, report: Path
) -> None:
    rows = {}
    for row in select.ep_rows(select.rows_of(inputs), inputs.params):
        parts = [row[k] for k in ("method", "preset", "theme", "keyword_set", "training_images")]
        rows[".".join(str(p) for p in parts if p), f"ep_{row['suite']}_{row['judged_theme']}"] = row
    seen = 0
    for path in sorted((report / cards.CARDS / cards.EVAL_RESULTS).glob("*.yaml")):
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert isinstance(entries, list)
        for entry in entries:
            assert entry.keys() <= {"dataset", "value", "date", "notes", "source", "verifyToken"}
            assert (
                entry["dataset"].keys() <= {"id", "task_id", "revision"}
                and entry["dataset"]["id"].count("/") == 1
            )
            row = rows[path.stem, entry["dataset"]["task_id"]]
            assert entry["value"] == pytest.approx(100 * row["ep"], abs=1e-4)
            assert f"n = {row['n']}" in entry["notes"] and "not comparable" in entry["notes"]
            assert entry["date"] == "2026-01-01"
            seen += 1
    assert seen == sum(row["ep"] is not None for row in rows.values()) > 50
    named = fake_inputs.settings(report={"dataset": "someone/prompts"})
    [first, *_] = cards.eval_results(select.rows_of(inputs), named).values()
    assert first[0]["dataset"]["id"] == "someone/prompts" and "date" not in first[0]


@pytest.mark.parametrize("where", ["project", "report"])
def test_citation_files_have_the_required_keys(where: str, report: Path) -> None:
    path = ROOT / "CITATION.cff" if where == "project" else report / cards.CARDS / cards.CITATION
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert found["cff-version"] == "1.2.0" and found["message"] and found["title"]
    assert found["type"] == ("software" if where == "project" else "dataset")
    assert all(author.get("name") or author.get("family-names") for author in found["authors"])
    assert found["license"] == "Apache-2.0"
    for reference in found.get("references", []):
        assert reference["type"] and reference["title"] and reference["authors"]
