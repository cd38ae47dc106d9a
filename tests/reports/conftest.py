from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fake_inputs

from palimpsest.reports.inputs import ReportInputs
from palimpsest.reports.page import write_report


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
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    binary, driver_path = next(filter(None, found), None), shutil.which("chromedriver")
    if not (binary and driver_path) and os.environ.get("PALIMPSEST_REQUIRE_BROWSER") != "1":
        pytest.skip("chromium or chromedriver is not installed; set PALIMPSEST_REQUIRE_BROWSER=1 to insist")
    assert binary and driver_path, (
        "PALIMPSEST_REQUIRE_BROWSER=1, but chromium or chromedriver is not installed"
    )
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(flag)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    yield driver
    driver.quit()
