"""What is missing is told before any work: which file, where to put it, where it comes from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from palimpsest.prompts.inventory import check_files
from tests.prompts.files import suite


def test_missing_files_name_place_origin_and_shape(tmp_path: Path) -> None:
    sources = {
        "i2p": {"format": "i2p", "path": "data/prompts/i2p.csv", "rows": 4703},
        "4chan": {
            "format": "authors",
            "path": "data/prompts/4chan.csv",
            "rows": 1500,
            "toxicity": "data/prompts/t.csv",
        },
        "mine": {"format": "one_column", "path": "data/prompts/mine.txt"},
    }
    # check_files reads only `suites`; a whole settings object needs weights and detectors that play no part
    # here
    experiment = SimpleNamespace(suites={"nsfw": suite(**sources)})
    lines = check_files(experiment, tmp_path)
    assert len(lines) == 4
    assert str(tmp_path / "data/prompts/i2p.csv") in lines[0]
    assert "AIML-TUDA/i2p" in lines[0]
    assert "4703 rows" in lines[0]
    assert "suites.nsfw.sources.4chan" in lines[1]
    assert "8255664" in lines[1]
    assert "prompt_sha256, toxicity" in lines[2]
    assert "one prompt per line" in lines[3]
    assert "Obtain" not in lines[3]
    for source in sources.values():
        for name in (source["path"], source.get("toxicity")):
            if name:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text("x")
    assert check_files(experiment, tmp_path) == []
    (tmp_path / "data/prompts/mine.txt").unlink()
    (tmp_path / "data/prompts/mine.txt").mkdir()
    assert "is a folder" in check_files(experiment, tmp_path)[0]


def test_adversarial_and_caption_files_are_known(tmp_path: Path) -> None:
    spec = suite(
        adv={"format": "ring_a_bell", "path": "adv.csv"}, c={"format": "coco", "path": "c.csv", "rows": 10000}
    )
    adversarial, captions = check_files(SimpleNamespace(suites={"x": spec}), tmp_path)
    assert "chiayi-hsu/Ring-A-Bell" in adversarial
    assert "MS COCO" in captions
