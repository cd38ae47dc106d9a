"""The manifest that another lab fills in, written from the user's own prompt files."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from palimpsest import params
from palimpsest.methods import external
from palimpsest.prompts.ingest import ingest
from palimpsest.sampling.loop import Request
from palimpsest.sampling.noise import image_seed
from tests.cli.conftest import ROOT, Run


@pytest.fixture(autouse=True)
def prompts(project: Path) -> None:
    """The prompt files of the micro world."""
    (project / "data").mkdir()
    (project / "data/micro").symlink_to(ROOT / "data/micro")


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_the_manifest_asks_for_every_image_of_a_suite_and_can_be_filled_in(run: Run, project: Path) -> None:
    result = run("external-template", "coco", "--out", "given/m.csv")
    assert result.exit_code == 0, result.output
    rows = read(project / "given/m.csv")
    settings = params.load(project / "params.yaml")
    frame, _ = ingest("coco", settings.suites["coco"], settings.seed, project, image_seed=image_seed)
    asked = frame.filter(gate="ok").to_dicts()
    assert [r["image_id"] for r in rows] == [r["image_id"] for r in asked]
    assert {r["suite"] for r in rows} == {"coco"} and not any(r["file"] or r["refused"] for r in rows)
    assert rows[0]["prompt_sha256"] == hashlib.sha256(rows[0]["prompt"].encode()).hexdigest()
    assert f"coco: {len(asked)} images to make" in result.output

    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(project / "given/black.png")
    with open(project / "given/m.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows({**r, "file": "black.png"} for r in rows)
    requests = [Request(r["image_id"], r["prompt"], r["seed"]) for r in asked]
    filled = external.Settings(manifest=str(project / "given/m.csv"))
    made = list(external.produce(requests, filled, 8, "coco"))
    assert {g.decision for g in made} == {"provided"} and len(made) == len(asked)


def test_all_suites_are_written_when_none_is_named_and_nothing_is_written_twice(
    run: Run, project: Path
) -> None:
    assert run("external-template").exit_code == 0
    path = project / "data/external/manifest/manifest.csv"
    assert {r["suite"] for r in read(path)} == {"nsfw", "coco"}
    before = path.read_bytes()
    again = run("external-template")
    assert again.exit_code == 1 and "exists; nothing was written" in again.output
    assert path.read_bytes() == before


def test_what_cannot_be_written_is_named(run: Run, project: Path) -> None:
    for arguments, said in (
        (["nsfv"], "no suite 'nsfv'; allowed: ['nsfw', 'coco']"),
        (["nsfw", "--out", "m.txt"], "m.txt is no .csv"),
    ):
        result = run("external-template", *arguments)
        assert result.exit_code == 1 and said in result.output
    (project / "mine.yaml").write_text(
        "experiment: mine\nsuites: {nsfw: {sources: {i2p: {path: nowhere.csv}}}}\n"
    )
    missing = run("external-template", "nsfw", "--config", "mine.yaml", "--out", "m.csv")
    assert missing.exit_code == 1 and "nowhere.csv" in missing.output
    assert not (project / "m.csv").exists()
