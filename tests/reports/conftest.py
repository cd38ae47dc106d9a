from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fake_inputs

from palimpsest.reports.inputs import ReportInputs
from palimpsest.reports.page import write_report
from tests.chromium import chromium


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> ReportInputs:
    """Synthetic inputs with a few images per variant."""
    return fake_inputs.make(tmp_path_factory.mktemp("inputs"), images=9)


@pytest.fixture(scope="session")
def report(inputs: ReportInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole report."""
    folder = tmp_path_factory.mktemp("report")
    write_report(inputs, folder)
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium without network."""
    with chromium() as driver:
        yield driver
