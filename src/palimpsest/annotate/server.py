"""The page's server: loopback only, a random token in every address, no file but the page's own and the store's images.

What a web page elsewhere, or another program of this machine, could try is refused: a name that was bound anew to 127.0.0.1 (the Host
header is checked), a form posted across sites (only JSON is taken, and only from our own origin), guessing (the token has 192 random
bits and is compared in constant time), paths (an image is asked for by digest and looked up among known ones).
"""

from __future__ import annotations

import hmac
import json
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from palimpsest.annotate.session import Session

FOLDER = Path(__file__).parent
PAGE = {
    "": ("page.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
}
LARGEST_BODY = 64 << 10
MOST_DRAINED = 1 << 20
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' data:; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Refused(Exception):
    """A request that gets no answer but a status and a sentence."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """A session on 127.0.0.1. port 0: any free one. `address` is what to open in a browser."""

    daemon_threads = True
    # several browsers load a page's files at once
    request_queue_size = 64

    def __init__(self, session: Session, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.session = session
        self.token = secrets.token_urlsafe(24)
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is no error worth a traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """The page's address, token and all."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "palimpsest"
    sys_version = ""
    timeout = 60
    taken = False

    def do_GET(self) -> None:
        """The page, its files, an image, or what the page asks for."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """What a rater does."""
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Addresses hold the token, so requests are not logged."""

    def _answer(self, make: Callable[[str], tuple[bytes, str]]) -> None:
        status = HTTPStatus.OK
        try:
            body, kind = make(self._admitted())
        except Refused as refused:
            status, body, kind = refused.status, _json({"error": str(refused)}), JSON
        except ValueError as error:
            status, body, kind = HTTPStatus.BAD_REQUEST, _json({"error": str(error)}), JSON
        except OSError as error:
            text = f"not saved: {error.strerror or error}. Make room, then try again"
            status, body, kind = HTTPStatus.INSUFFICIENT_STORAGE, _json({"error": text}), JSON
        # one request each: what is left of a refused one is never taken for the next, and a browser notices at once that a server is gone
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        if status != HTTPStatus.OK:
            self._drain()

    def _drain(self) -> None:
        """Read what a refused client still sends, within limits: closing before that would take the answer from it."""
        self.wfile.flush()
        self.connection.settimeout(1)
        length = self.headers.get("Content-Length", "")
        if not self.taken and length.isascii() and length.isdigit():
            with suppress(OSError):
                self.rfile.read(min(int(length), MOST_DRAINED))

    def _admitted(self) -> str:
        """The part of the path after the token. Raises Refused for every request that does not come from the page."""
        if self.headers.get("Host", "") not in self.server.hosts:
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to 127.0.0.1 only")
        _, _, rest = self.path.partition("/")
        token, slash, rest = rest.partition("/")
        known = hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self.server.token.encode())
        if not (known and slash):
            raise Refused(
                HTTPStatus.FORBIDDEN,
                "open the address that `palimpsest annotate` printed: it holds the token",
            )
        return rest

    def _get(self, rest: str) -> tuple[bytes, str]:
        parts = urlsplit(rest)
        session = self.server.session
        asked = parse_qs(parts.query).get("rater", [None])[0]
        who = None if asked is None else session.rater(asked)
        if parts.path in PAGE:
            name, kind = PAGE[parts.path]
            return (FOLDER / name).read_bytes(), kind
        if parts.path == "state":
            return _json(session.state(who)), JSON
        if parts.path == "disputes" and who is not None:
            return _json(session.disputes(who)), JSON
        what, _, image = parts.path.partition("/")
        if what == "image":
            return self._image(image), "image/png"
        raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _image(self, image: str) -> bytes:
        try:
            return self.server.session.path(image).read_bytes()
        except (KeyError, FileNotFoundError):
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such image") from None

    def _post(self, rest: str) -> tuple[bytes, str]:
        sent, session = self._sent(), self.server.session
        who, image = session.rater(sent.get("rater")), sent.get("image", "")
        if not isinstance(image, str):
            raise ValueError(f"image must be a digest, got {type(image).__name__}")
        try:
            if rest == "answer":
                session.answer(who, image, sent.get("answers"))
            elif rest == "skip":
                session.skip(who, image)
            elif rest == "undo":
                session.undo(who)
            elif rest == "again":
                session.again(who)
            elif rest == "decide":
                session.answer(who, image, sent.get("answers"), "adjudicator")
            elif rest == "undecide":
                session.undo(who, "adjudicator")
            else:
                raise Refused(HTTPStatus.NOT_FOUND, "there is nothing of that name to do")
        except KeyError:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such image") from None
        if rest in ("decide", "undecide"):
            return _json(session.disputes(who)), JSON
        return _json(session.state(who)), JSON

    def _sent(self) -> dict[str, Any]:
        """The JSON of a request from our own page. Raises Refused."""
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in self.server.hosts}:
            raise Refused(HTTPStatus.FORBIDDEN, "requests from other pages are not taken")
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "only application/json is taken")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
        if int(length) > LARGEST_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {LARGEST_BODY} bytes are taken")
        self.taken = True
        try:
            sent = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise Refused(HTTPStatus.BAD_REQUEST, "the body is no JSON") from None
        if not isinstance(sent, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "the body must be a JSON object")
        return sent


JSON = "application/json; charset=utf-8"


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
