"""The page in a real browser: headless Chromium, found on the machine and never downloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
REQUIRED = os.environ.get("PALIMPSEST_REQUIRE_BROWSER") == "1"
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and not REQUIRED,
    reason="chromium or chromedriver is not installed; set PALIMPSEST_REQUIRE_BROWSER=1 to insist",
)


def column(browser: Any, table: str, at: int) -> list[str]:
    """What a column of a table sorts by, top to bottom."""
    script = "return [...document.getElementById(arguments[0]).tBodies[0].rows].map(r => r.cells[arguments[1]].dataset.order)"
    return browser.execute_script(script, table, at)


def open_page(browser: Any, folder: Path, fragment: str = "") -> None:
    browser.get("about:blank")
    browser.get((folder / "index.html").as_uri() + fragment)


def test_nothing_hostile_ran_and_nothing_is_wrong(browser: Any, report: Path) -> None:
    open_page(browser, report)
    assert browser.execute_script("return window.pwned === undefined")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert browser.execute_script("return [...document.images].length > 0")
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_a_table_sorts_by_number_and_says_so(browser: Any, report: Path) -> None:
    open_page(browser, report)
    heads = browser.execute_script(
        "return [...document.querySelectorAll('#ep-table thead th')].map(t => t.innerText.trim())"
    )
    at = heads.index("EP %")
    for direction in ("ascending", "descending"):
        browser.execute_script(
            "document.querySelectorAll('#ep-table thead button')[arguments[0]].click()", at
        )
        values = [float(value) for value in column(browser, "ep-table", at) if value]
        assert values == sorted(values, reverse=direction == "descending")
        assert (
            browser.execute_script("return document.querySelector('#ep-table [aria-sort]').ariaSort")
            == direction
        )
    assert len(set(values)) > 3


def test_filtering_leaves_the_rows_that_match(browser: Any, report: Path) -> None:
    open_page(browser, report)
    box = browser.find_element("css selector", "[data-filter=ep-table]")
    box.send_keys("uce glitch")
    script = "return [...document.querySelectorAll('#ep-table tbody tr')].filter(r => !r.hidden).map(r => r.innerText)"
    left = browser.execute_script(script)
    assert left
    assert all("UCE" in text and "glitch" in text for text in left)


def test_a_link_into_a_folded_table_opens_it(browser: Any, report: Path) -> None:
    open_page(browser, report)
    anchor = browser.execute_script("return document.querySelector('#datasets-table tbody tr').id")
    assert not browser.execute_script(
        "return document.getElementById(arguments[0]).closest('details').open", anchor
    )
    open_page(browser, report, f"#{anchor}")
    assert browser.execute_script(
        "return document.getElementById(arguments[0]).closest('details').open", anchor
    )


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_never_scrolls_sideways(browser: Any, report: Path, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    open_page(browser, report)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return window.innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_schemes(browser: Any, report: Path, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    open_page(browser, report)
    script = """
      const light = (c) => { const v = c.match(/[\\d.]+/g).slice(0, 3).map((x) => {
        x = x / 255; return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
      const paper = light(getComputedStyle(document.body).backgroundColor);
      return ["body", ".note", "nav a", "figcaption", "td small", "figure svg text"].map((s) => {
        const e = document.querySelector(s), c = getComputedStyle(e), ink = light(s.includes("svg") ? c.fill : c.color);
        return [s, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)]; });"""
    for place, contrast in browser.execute_script(script):
        assert contrast >= 4.5, (place, contrast)  # WCAG 2.2, level AA
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(paper.split("(")[1].split(",")[0]) < 80) == (scheme == "dark")


def test_blurred_images_are_revealed_by_the_keyboard(browser: Any, inputs: Any, tmp_path: Path) -> None:
    import dataclasses

    import fake_inputs

    from palimpsest.reports.page import write_report

    write_report(
        dataclasses.replace(inputs, params=fake_inputs.settings(report={"blur": True, "pairs": 1})), tmp_path
    )
    open_page(browser, tmp_path)
    state = "return getComputedStyle(document.querySelector('.reveal img')).filter"
    assert "blur" in browser.execute_script(state)
    button = browser.find_element("css selector", ".reveal")
    button.send_keys("\n")
    assert browser.execute_script(state) == "none"
    browser.find_element("id", "hide-all").send_keys("\n")
    assert "blur" in browser.execute_script(state)


def test_the_page_stands_without_a_driver(report: Path, tmp_path: Path) -> None:
    """What the README's reader does: opens the file; the document is whole with scripts run."""
    assert CHROMIUM, "PALIMPSEST_REQUIRE_BROWSER=1, but chromium is not installed"
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--dump-dom",
    ]
    found = subprocess.run(
        [*command, (report / "index.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert found.stdout.rstrip().endswith("</html>")
    assert "Synthetic test data" in found.stdout
