"""The commands on the pages of estimates and weights do what the pages say."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from palimpsest.cli.main import app
from tests.cli.test_docs import commands
from tests.estimate.conftest import ROOT

LINES = commands(ROOT / "docs/estimate.md", "palimpsest") + commands(ROOT / "docs/weights.md", "palimpsest")
BLOCKS = [
    line
    for line in dict.fromkeys(LINES)
    if line.split()[1] in ("estimate", "download") and len(line.split()) > 2
]


def given(line: str) -> str:
    result = CliRunner().invoke(app, line.split()[1:])
    assert result.exit_code == 0, f"{line}: {result.output}"
    return result.output


def test_the_pages_have_their_commands():
    assert len(BLOCKS) >= 5


@pytest.mark.parametrize("line", [line for line in BLOCKS if "--calibrate" not in line])
def test_commands_run(line, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    shown = given(line)
    if "--json" in line:
        assert json.loads(shown)["experiment"] == "paper"
    elif "estimate" in line:
        assert "hours" in shown and "evaluations" in shown
    else:
        assert (
            "CompVis/stable-diffusion-v1-4@133a221b8aa7292a167afc5127cb63fb5005638b: 4.0 GiB, CreativeML OpenRAIL-M"
            in shown
        )
        assert "Nothing was fetched yet" in shown and not list(tmp_path.iterdir())


def test_this_machine_is_measured(monkeypatch):
    monkeypatch.chdir(ROOT)
    data = json.loads(given("palimpsest estimate experiments/tiny.yaml --calibrate 1 --json"))
    assert (
        data["chip"]["measured"]
        and "measured here" in data["chip"]["source"]
        and "torch" in data["chip"]["source"]
    )
    rates = data["chip"]["rates"]
    assert all(1e8 < rates[kind]["float32"] < 1e14 for kind in rates)
    assert 0 < data["total"]["hours"] < 10


def test_downloads_can_be_forbidden_by_settings(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    mine = tmp_path / "mine.yaml"
    mine.write_text("downloads: {offline: true}\nmodel: {path: nobody/nothing}\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["download", str(mine), "--accept"])
    assert result.exit_code == 1 and "downloads.offline is true" in result.output
