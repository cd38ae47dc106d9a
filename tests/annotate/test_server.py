"""What a stranger, a hostile page or a broken client can get out of the server: nothing."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from palimpsest.annotate import journal
from tests.annotate.conftest import HOSTILE, THEMES, Client, yes
from tests.cli.conftest import ROOT


def test_two_raters_label_everything_at_once(client: Client) -> None:
    def work(who: str, shown: str) -> None:
        state = client.get(f"state?rater={who}")
        while state["image"]:
            state = client.post("answer", who, image=state["image"], answers=yes(shown))
        done[who] = state["done"]

    done: dict[str, int] = {}
    threads = [threading.Thread(target=work, args=pair) for pair in (("ann", "glitch"), ("bob", "uncased"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == {"ann": 6, "bob": 6}
    assert len(client.get("disputes?rater=eve")["disputes"]) == 6
    assert len(client.server.session.board.votes()) == 24


def test_images_are_served_as_png_by_digest(client: Client) -> None:
    image = client.get("state?rater=ann")["image"]
    status, data, headers = client.send("GET", f"image/{image}")
    assert (status, headers["content-type"]) == (200, "image/png")
    assert np.asarray(Image.open(io.BytesIO(data))).shape == (16, 16, 3)


@pytest.mark.parametrize("rest", ["", "page.css", "page.js", "state", "image/none"])
def test_every_answer_forbids_what_it_does_not_need(client: Client, rest: str) -> None:
    _, _, headers = client.send("GET", rest)
    assert headers["content-security-policy"].startswith("default-src 'none';")
    assert "unsafe" not in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_page_asks_for_nothing_from_elsewhere(client: Client) -> None:
    for rest in ("", "page.css", "page.js"):
        text = client.get(rest).decode()
        assert not re.search(r"https?://|//[a-z]+\.|@import|innerHTML|eval\(", text)


@pytest.mark.parametrize("token", ["", "x", "Zm9v", "../", "%2e%2e", "%c3%a9", "%00"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_wrong_token_gets_nothing(client: Client, token: str, method: str) -> None:
    for rest in ("", "state", "page.js", f"image/{next(iter(client.server.session.here))}", "answer"):
        status, found, _ = client.send(method, rest, {} if method == "POST" else None, token=token)
        assert status == 403
        assert client.server.token not in str(found)


def test_almost_the_token_is_not_the_token(client: Client) -> None:
    token = client.server.token
    assert len(token) == 32
    for wrong in (token[:-1], token + "x", token.swapcase(), token[:-1] + ("a" if token[-1] != "a" else "b")):
        assert client.send("GET", "state", token=wrong)[0] == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1", "[::1]", "0.0.0.0", ""]
)
def test_another_host_name_is_refused(client: Client, host: str) -> None:
    assert client.send("GET", "state", headers={"Host": host})[0] == 421
    assert client.send("POST", "undo", {"rater": "ann"}, headers={"Host": host})[0] == 421


def test_a_request_without_host_is_refused(client: Client) -> None:
    with socket.create_connection(("127.0.0.1", client.server.server_port), timeout=5) as plain:
        plain.sendall(f"GET /{client.server.token}/state HTTP/1.1\r\n\r\n".encode())
        assert b" 421 " in plain.recv(4096).split(b"\r\n")[0]


TRAVERSALS = [
    "image/../../journal.jsonl", "image/..%2f..%2fjournal.jsonl", "image/%2e%2e/journal.jsonl", "image/" + "0" * 64, "image//etc/passwd",
    "../state", "..%2fstate", "page.html", "server.py", "./page.js", "image/", "image", "images/x.png", "journal.jsonl",
    "image/" + "a" * 64 + "%00.png", "image/C:\\windows\\win.ini", "page.js/", "%70age.css",
]  # fmt: skip


@pytest.mark.parametrize("rest", TRAVERSALS)
def test_no_path_leads_to_a_file(client: Client, rest: str, tmp_path: Path) -> None:
    status, found, _ = client.send("GET", rest)
    assert status == 404, found
    assert found == {"error": found["error"]}


def test_a_file_planted_in_the_store_is_not_served(client: Client) -> None:
    stranger = "ab" * 32
    (client.server.session.images / f"{stranger}.png").write_bytes(b"secret")
    assert client.send("GET", f"image/{stranger}")[0] == 404


def test_only_json_from_our_own_page_is_taken(client: Client) -> None:
    body = {"rater": "ann"}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert client.send("POST", "undo", body, headers={"Content-Type": kind})[0] == 415
    assert client.send("POST", "undo", body, headers={"Origin": "http://evil.example"})[0] == 403
    assert client.send("POST", "undo", body, headers={"Origin": "null"})[0] == 403
    own = {"Origin": f"http://127.0.0.1:{client.server.server_port}"}
    assert client.send("POST", "undo", body, headers=own)[0] == 200
    for raw in (b"", b"[]", b"{", b"\xff", b"[" * 60_000):
        assert client.send("POST", "undo", raw=raw)[0] == 400
    assert client.send("POST", "undo", raw=b"{}", headers={"Content-Length": "-1"})[0] == 411
    assert client.send("POST", "undo", raw=b"x" * 70_000)[0] == 413
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD"):
        assert client.send(method, "state")[0] == 501


def test_answers_that_are_none_change_nothing(client: Client) -> None:
    image = client.get("state?rater=ann")["image"]
    wrong: list[Any] = [
        None,
        {},
        [],
        {"uncased": "yes"},
        {**yes(), "more": "no"},
        {"uncased": "maybe", "glitch": "no"},
        yes() | {"glitch": 1},
    ]
    for answers in wrong:
        status, found, _ = client.send("POST", "answer", {"rater": "ann", "image": image, "answers": answers})
        assert status == 400, found
    assert client.send("POST", "answer", {"rater": "ann", "image": "0" * 64, "answers": yes()})[0] == 404
    assert client.send("POST", "answer", {"rater": "ann", "image": ["x"], "answers": yes()})[0] == 400
    assert client.send("POST", "answer", {"rater": "", "image": image, "answers": yes()})[0] == 400
    assert client.send("POST", "nothing", {"rater": "ann"})[0] == 404
    assert client.server.session.board.votes() == []


def test_a_name_that_is_markup_stays_a_name(client: Client) -> None:
    who = "<img src=x onerror=alert(1)>"
    image = client.get("state?rater=bob")["image"]
    assert who in client.post("answer", who, image=image, answers=yes())["raters"]
    assert who.encode() not in client.get("")


def test_it_listens_on_loopback_only(client: Client) -> None:
    assert client.server.server_address[0] == "127.0.0.1"


def test_a_full_disk_says_that_nothing_was_saved(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    image = client.get("state?rater=ann")["image"]

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(client.server.session.journal, "append", full)
    status, found, _ = client.send("POST", "answer", {"rater": "ann", "image": image, "answers": yes()})
    assert (status, found["error"].split(":")[0]) == (507, "not saved")
    assert client.get("state?rater=ann")["image"] == image


# --- the command itself ---------------------------------------------------------------------------------------------------------


def start(store: Path, folder: Path) -> tuple[subprocess.Popen[str], str, str]:
    """`palimpsest annotate` in the project, what it printed up to the address, and the address."""
    command = [
        sys.executable,
        "-m",
        "palimpsest.cli",
        "annotate",
        "--folder",
        str(folder),
        "--store",
        str(store),
    ]
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    )
    assert running.stdout
    printed = ""
    for line in running.stdout:
        printed += line
        if line.startswith("open http"):
            return running, printed, line.split()[1]
    raise AssertionError(printed)


def post(address: str, what: str, **body: Any) -> Any:
    import json

    headers = {"Content-Type": "application/json"}
    sent = urllib.request.Request(address + what, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(sent, timeout=10) as answer:
        return json.load(answer)


def test_a_killed_server_loses_no_answer_it_confirmed(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for n in range(40):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{n}.png")
    hostile = folder / HOSTILE.split("/")[-1].replace("/", "")
    (folder / "0.png").rename(hostile)
    running, _, address = start(tmp_path / "store", folder)
    themes = {"uncased": "yes", "breakage": "no", "glitch": "unsure"}
    confirmed: set[str] = set()

    def work() -> None:
        state = post(address, "undo", rater="ann")
        try:
            while state["image"]:
                image = state["image"]
                state = post(address, "answer", rater="ann", image=image, answers=themes)
                confirmed.add(image)
        except OSError:
            pass

    labelling = threading.Thread(target=work)
    labelling.start()
    while len(confirmed) < 8 and labelling.is_alive():
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    running.wait()
    labelling.join()
    kept = {
        event["image"]
        for event in journal.read(tmp_path / "store/journal.jsonl")
        if event["kind"] == "answer"
    }
    assert len(confirmed) >= 8
    assert confirmed <= kept
    assert len(kept - confirmed) <= 1
    with open(tmp_path / "store/journal.jsonl", "ab") as handle:
        handle.write(b'{"kind": "answer", "rat')
    running, printed, second = start(tmp_path / "store", folder)
    try:
        assert "0 new image(s)" in printed
        assert "23 byte(s) set aside" in printed
        assert second.split("/")[3] != address.split("/")[3]
        state = post(second, "undo", rater="nobody yet")
        assert state["total"] == 40
        with urllib.request.urlopen(f"{second}state?rater=ann", timeout=10) as answer:
            import json

            assert json.load(answer)["done"] == len(kept)
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=20) == 0
    assert THEMES.keys() <= themes.keys()
