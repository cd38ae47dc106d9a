"""A project folder with the real settings, and the command run in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from palimpsest.cli.main import app

ROOT = Path(__file__).parents[2]
Run = Callable[..., Result]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings of this project in an empty folder, which is the current one."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    shutil.copytree(ROOT / "methods", tmp_path / "methods")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(project: Path) -> Run:
    """`palimpsest ARGUMENTS` in the project folder."""
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])
