"""A headless Chromium for tests of pages; they are skipped where none is installed, unless PALIMPSEST_REQUIRE_BROWSER=1."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
)


@contextmanager
def chromium(*resolved: str) -> Iterator[Any]:
    """A driver of a browser that reaches no host but those in `resolved`, and keeps what its console says."""
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
    rules = ", ".join(["MAP * ~NOTFOUND", *(f"EXCLUDE {host}" for host in resolved)])
    for flag in (*FLAGS, f"--host-resolver-rules={rules}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    yield driver
    driver.quit()
