"""The page in headless Chromium: two raters with the keyboard, blur, undo, disagreements, a server that dies under it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palimpsest.annotate.board import Place
from palimpsest.annotate.server import Server
from palimpsest.annotate.session import Session
from tests.annotate.conftest import HOSTILE, THEMES
from tests.chromium import chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that resolves no name."""
    with chromium("127.0.0.1") as driver:
        yield driver


class Running:
    """A server in a thread, which can be stopped and begun again at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.start(0, None)

    def start(self, port: int, token: str | None) -> None:
        self.session = Session(self.folder, THEMES)
        rng = np.random.default_rng(3)
        flat = [np.full((24, 24, 3), colour, np.uint8) for colour in rng.integers(0, 256, (4, 3))]
        self.session.add((image, Place("", "in", f"{HOSTILE}{n}")) for n, image in enumerate(flat))
        self.server = Server(self.session, port)
        self.server.token = token or self.server.token
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.session.close()
        self.thread.join()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    server = Running(tmp_path / "store")
    yield server
    server.stop()


def wait(browser: Any, script: str, *arguments: Any) -> Any:
    """The value of a script as soon as it is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 10, 0.02).until(lambda b: b.execute_script(f"return {script}", *arguments))


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def enter(browser: Any, running: Running, who: str) -> None:
    browser.get("about:blank")
    browser.get(running.server.address)
    wait(browser, "document.activeElement.id === 'name'")
    press(browser, who, "\ue007")
    wait(browser, "rater !== null && !busy")
    loaded(browser)


def loaded(browser: Any) -> None:
    """Wait until nothing is under way and an image is there, or the end is."""
    wait(
        browser,
        "!busy && (at === null || (document.images[0].complete && document.images[0].naturalWidth > 0))",
    )


def answer(browser: Any, *keys: str) -> None:
    """Look, press keys, and wait for what comes next."""
    loaded(browser)
    before = browser.execute_script("return at")
    press(browser, "v", *keys)
    wait(browser, "at !== arguments[0] && !busy", before)


def filtered(browser: Any) -> str:
    return browser.execute_script("return getComputedStyle(document.getElementById('picture')).filter")


def test_two_raters_label_by_keyboard_and_a_third_decides(browser: Any, running: Running) -> None:
    enter(browser, running, "ann")
    for keys in (["1", "\ue007"], ["0"], ["2", "2", "\ue007"], ["0"]):
        answer(browser, *keys)
    wait(browser, "!document.getElementById('end').hidden")
    assert "all 4 images" in browser.find_element("id", "end-text").text
    enter(browser, running, "bob")
    for _ in range(4):
        answer(browser, "0")
    said = running.session.board.votes()
    assert sorted(v.answer for v in said if v.rater == "ann") == ["no"] * 6 + ["unsure", "yes"]
    assert {v.answer for v in said if v.rater == "bob"} == {"no"}
    enter(browser, running, "eve")
    browser.find_element("css selector", "[data-view=decide]").click()
    wait(browser, "view === 'decide' && !busy")
    loaded(browser)
    assert [
        f.text.split("\n")[0].strip() for f in browser.find_elements("css selector", "#themes fieldset")
    ] == ["1 uncased"]
    assert "shown 1, not shown 1" in browser.find_element("css selector", ".words").text
    press(browser, "v", "1", "\ue007")
    wait(browser, "!document.getElementById('end').hidden && !busy")
    assert [
        (v.rater, v.theme, v.answer) for v in running.session.board.votes() if v.role == "adjudicator"
    ] == [("eve", "uncased", "yes")]
    assert browser.get_log("browser") == []


def test_images_are_blurred_until_asked_for_and_each_anew(browser: Any, running: Running) -> None:
    from selenium.webdriver import ActionChains

    enter(browser, running, "ann")
    assert "blur" in filtered(browser)
    press(browser, "\ue007")
    wait(browser, "document.getElementById('status').textContent.startsWith('Look at the image first')")
    assert running.session.board.votes() == []
    ActionChains(browser).key_down(" ").perform()
    wait(browser, "!document.getElementById('picture').classList.contains('blurred')")
    ActionChains(browser).key_up(" ").perform()
    wait(browser, "document.getElementById('picture').classList.contains('blurred')")
    browser.find_element("id", "frame").click()
    wait(browser, "!document.getElementById('picture').classList.contains('blurred')")
    press(browser, "0")
    wait(browser, "state.done === 1 && !busy")
    loaded(browser)
    assert browser.execute_script("return document.getElementById('picture').classList.contains('blurred')")
    press(browser, "c")
    wait(browser, "!document.getElementById('picture').classList.contains('blurred')")


def test_undo_skip_and_unsure(browser: Any, running: Running) -> None:
    enter(browser, running, "ann")
    first = browser.execute_script("return at")
    answer(browser, "2", "\ue007")
    press(browser, "z")
    wait(browser, "at === arguments[0] && !busy", first)
    assert browser.execute_script("return answers()") == {"uncased": "no", "glitch": "yes"}
    press(browser, "s")
    wait(browser, "state.skipped === 1 && !busy")
    press(browser, "u")
    wait(browser, "state.done === 1 && !busy")
    assert "1 of 4 · 1 skipped · 1 unsure" in browser.find_element("id", "counts").text
    for _ in range(2):
        answer(browser, "0")
    browser.find_element("id", "again").click()
    wait(browser, "at === arguments[0] && !busy", first)


def test_a_server_that_dies_is_noticed_and_nothing_is_answered_twice(browser: Any, running: Running) -> None:
    enter(browser, running, "ann")
    answer(browser, "0")
    port, token = running.server.server_port, running.server.token
    running.stop()
    press(browser, "v", "0")
    wait(browser, "document.getElementById('status').textContent.includes('does not answer')")
    running.start(port, token)
    answer(browser, "0")
    assert browser.execute_script("return state.done") == 2
    assert len(running.session.board.votes()) == 4
    browser.get_log("browser")


def test_hostile_names_are_text(browser: Any, running: Running) -> None:
    who = "<img src=x onerror='pwned=1'>"
    image = running.session.state(None)
    assert image["total"] == 4
    running.session.answer(who, next(iter(running.session.here)), {"uncased": "no", "glitch": "no"})
    enter(browser, running, "ann")
    browser.get(running.server.address)
    wait(browser, "document.querySelectorAll('#known button').length === 1")
    browser.find_element("css selector", "#known button").click()
    loaded(browser)
    assert browser.find_element("id", "who").text == who
    assert browser.execute_script("return window.pwned === undefined")
    assert browser.execute_script("return document.images.length") == 1
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1280])
def test_it_is_readable_and_fits(browser: Any, running: Running, scheme: str, width: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    enter(browser, running, "ann")
    press(browser, "1")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    script = """
      const light = (c) => { const v = c.match(/[\\d.]+/g).slice(0, 3).map((x) => {
        x = x / 255; return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
      const ground = (e) => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor; if (!c.endsWith(", 0)")) return c; } return "rgb(255, 255, 255)"; };
      return ["#who", "#counts", ".words", ".note.keys", "#save", "#status", "#clear-line", "legend",
              ".answers label:has(:checked)", ".answers label:not(:has(:checked))"].map((s) => {
        const e = document.querySelector(s), ink = light(getComputedStyle(e).color), paper = light(ground(e));
        return [s, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)]; });"""
    for place, contrast in browser.execute_script(script):
        assert contrast >= 4.5, (place, contrast)  # WCAG 2.2, level AA
    small = [
        b.size["height"]
        for b in browser.find_elements("css selector", "#actions button")
        if b.size["height"] < 24
    ]
    assert not small
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
