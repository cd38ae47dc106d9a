"""From a number of a table to its images: the links, the data behind them, and the page in a browser."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import fake_inputs
import numpy as np
import pytest
from PIL import Image

from palimpsest import sheets
from palimpsest.reports import drill, page, pairs, select, tables
from palimpsest.reports.inputs import ReportInputs


def data_of(path: Path) -> dict[str, Any]:
    """What a script hands to the page."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith("arrived(") and text.endswith(");\n")
    found: dict[str, Any] = json.loads(text.removeprefix("arrived(").removesuffix(");\n"))
    return found


def test_a_sheet_holds_every_picture_at_its_place() -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (40, 3))
    pictures = {i: np.full((64, 64, 3), colour, np.uint8) for i, colour in enumerate(colours) if i != 7}
    whole = Image.open(io.BytesIO(sheets.sheet(pictures, 40) or b"")).convert("RGB")
    assert whole.size == (16 * 64, 3 * 64)
    for place in range(40):
        middle = whole.getpixel((64 * (place % 16) + 32, 64 * (place // 16) + 32))
        assert middle == pytest.approx(colours[place] if place != 7 else sheets.PAPER, abs=6)
    assert sheets.sheet({}, 40) is None
    large = np.zeros((256, 128, 3), np.uint8)
    large[:128] = 200
    assert sheets.small(large)[:32].min() == 200 and sheets.small(large)[32:].max() == 0


def test_of_many_images_the_same_ones_are_chosen_whatever_the_method() -> None:
    ids = [f"i2p/{i:05d}/0" for i in range(500)]
    chosen = sheets.chosen(ids, 50)
    assert len(chosen) == 50 and chosen == sorted(chosen)
    picked = {ids[at] for at in chosen}
    assert {ids[::-1][at] for at in sheets.chosen(ids[::-1], 50)} == picked
    assert picked < {ids[at] for at in sheets.chosen(ids, 60)}
    assert sheets.chosen(ids, 500) == list(range(500)) and sheets.chosen(ids, 0) == []


def test_the_data_are_those_of_scores_and_comparisons(inputs: ReportInputs, report: Path) -> None:
    scores = pairs.files(inputs.scores, "vqa")
    wanted = {"method": "filter", "theme": "glitch", "suite": "nsfw"}
    identity, path = next((i, p) for i, p in inputs.comparisons if wanted.items() <= i.items())
    key = pairs.identity_key(identity)
    cell = data_of(report / drill.CELLS / f"{drill.name_of(key)}.js")
    suite = data_of(report / drill.CELLS / f"{cell['suite']}.js")
    rows = pairs.read_images([path], suite["image_id"], "after")
    assert cell["name"] == "Image filter" and cell["themes"] == ["glitch"]
    assert cell["title"].startswith("Image filter, erasing glitch")
    assert [rows[i]["prompt"] for i in suite["image_id"]] == suite["prompt"]
    own = pairs.read_scores(scores[key], "glitch", inputs.params)
    for at, image_id in enumerate(suite["image_id"]):
        found = cell["scores"]["glitch"][at]
        if image_id in own:
            assert found == [pytest.approx(own[image_id], abs=5e-4), int(own[image_id] > 0.5)]
        else:
            assert found is None and cell["notes"][str(at)].startswith("prompt blocked: word list")
    assert cell["place"] == list(range(9)) and all(
        (report / drill.SHEETS / name).is_file() for name in cell["sheets"][0]
    )


def test_numbers_of_the_main_tables_link_to_their_images(inputs: ReportInputs, report: Path) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    for table in ("ep", "datasets", "benign", "by_theme_keywords", "ranks"):
        part = text.split(f'id="{table}-table"')[1].split("</table>")[0]
        assert 'class="look" href="images.html#' in part, table
    row = next(r for r in select.rows_of(inputs) if r["method"] == "uce" and r["dataset"] == "i2p")
    linked = drill.Drill({pairs.identity_key(row): "uce.x"}, {}).link
    assert linked(row) == f"images.html#uce.x/{row['judged_theme']}/i2p"
    assert linked({**row, "dataset": "a/b", "judged_theme": "any"}) == "images.html#uce.x//a%2Fb"
    assert linked({**row, "method": "other"}) == "" and linked({"label": "no row"}) == ""
    column = tables.Column("ep", "EP", "percent", with_interval=True)
    assert (
        tables.shown(column, row, linked).href.startswith("images.html#")
        and tables.shown(column, row).href == ""
    )


def test_the_page_shows_filters_and_unblurs(browser: Any, inputs: ReportInputs, tmp_path: Path) -> None:
    few = [
        (i, p) for i, p in inputs.comparisons if i["method"] in ("filter", "uce") and i["theme"] == "glitch"
    ]
    blurred = dataclasses.replace(inputs, params=fake_inputs.settings(report={"blur": True}))
    scores = pairs.files(inputs.scores, "vqa")
    drilled = drill.write(select.rows_of(inputs), blurred.params, pairs.files(few), scores, {}, tmp_path)
    (tmp_path / drill.PAGE).write_text(page.render_images(blurred, drilled), encoding="utf-8")
    key = pairs.identity_key(next(i for i, _ in few if i["method"] == "filter" and i["suite"] == "nsfw"))
    browser.get("about:blank")
    browser.get(f"{(tmp_path / 'images.html').as_uri()}#{drill.name_of(key)}/glitch/i2p")
    wait = "return document.querySelectorAll('#cards > li').length"
    for _ in range(50):
        if browser.execute_script(wait):
            break
        browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert browser.execute_script(wait) == 3  # every third of nine images comes from this source
    assert browser.execute_script("return window.pwned === undefined")
    text = browser.find_element("id", "cards").text
    assert "prompt blocked: word list" in text and "seed 0" in text
    picture = "return getComputedStyle(document.querySelector('button.look span')).filter"
    assert "blur" in browser.execute_script(picture)
    browser.find_element("id", "unblur").click()
    assert browser.execute_script(picture) == "none"
    browser.execute_script(
        "const s = document.getElementById('kind'); s.value = 'none'; s.dispatchEvent(new Event('change'))"
    )
    assert browser.execute_script(wait) == 3 and "no image" in browser.find_element("id", "cards").text
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    other = pairs.identity_key(next(i for i, _ in few if i["method"] == "uce" and i["suite"] == "nsfw"))
    browser.execute_script(
        "const s = document.getElementById('cell'); s.value = arguments[0]; s.dispatchEvent(new Event('change'))",
        drill.name_of(other),
    )
    for _ in range(50):
        if "erasing glitch" in (said := browser.find_element("id", "what").text) and "UCE" in said:
            break
        browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert "UCE" in said and browser.execute_script("return location.hash").endswith("/glitch/i2p")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
