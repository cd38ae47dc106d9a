"""A hub on this machine: as much of its protocol as downloads need, over the loopback, with breaks and refusals on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Hub:
    """files: path -> content. large: paths that the hub keeps apart with a digest. breaks: bytes after which a transfer of a large file
    is cut off, one per transfer, in turn. refusal: status and the hub's word for it;
    listed: of files only. spoiled: large files are sent with a wrong byte so
    often. served: (path, first byte, bytes sent) of every transfer. token: what clients sent last.
    """

    repo: str
    files: dict[str, bytes]
    large: tuple[str, ...] = ()
    breaks: list[int] = field(default_factory=list)
    refusal: tuple[int, str] | None = None
    listed: bool = False
    failures: int = 0
    spoiled: int = 0
    served: list[tuple[str, int, int]] = field(default_factory=list)
    token: str = ""
    address: str = ""

    def tree(self) -> list[dict[str, Any]]:
        found = []
        for path, content in self.files.items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
            entry["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if path in self.large:
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
            found.append(entry)
        return found


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """The hub at `hub.address` while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def say(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.token = self.headers.get("Authorization", "")
            path = unquote(urlsplit(self.path).path)
            if hub.refusal and not (hub.listed and path.startswith("/api/")):
                status, word = hub.refusal
                return self.say(status, b"{}", X_Error_Code=word, X_Error_Message=word)
            if hub.failures:
                hub.failures -= 1
                return self.say(503, b"{}")
            if path.startswith(f"/api/models/{hub.repo}/tree/"):
                return self.say(200, json.dumps(hub.tree()).encode(), Content_Type="application/json")
            if path.startswith(f"/api/models/{hub.repo}"):
                told = path.partition("/revision/")[2] or "main"
                if told not in ("main", COMMIT):
                    return self.say(
                        404, b"{}", X_Error_Code="RevisionNotFound", X_Error_Message="no such revision"
                    )
                names = [{"rfilename": name} for name in hub.files]
                body = {
                    "id": hub.repo,
                    "modelId": hub.repo,
                    "sha": COMMIT,
                    "siblings": names,
                    "tags": [],
                    "private": False,
                }
                return self.say(200, json.dumps(body).encode(), Content_Type="application/json")
            if path.startswith("/elsewhere/"):
                return self.transfer(path.removeprefix("/elsewhere/"))
            name = path.partition("/resolve/")[2].partition("/")[2]
            if name not in hub.files:
                return self.say(404, b"{}", X_Error_Code="EntryNotFound", X_Error_Message="no such file")
            if name in hub.large:  # large files lie elsewhere
                content = hub.files[name]
                self.send_response(302)
                self.send_header("Location", f"{hub.address}/elsewhere/{name}")
                self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            return self.transfer(name)

        def transfer(self, name: str) -> None:
            content = hub.files[name]
            digest = (
                hashlib.sha256(content).hexdigest()
                if name in hub.large
                else hashlib.sha1(content).hexdigest()
            )
            told = self.headers.get("Range", "")
            first = int(told.removeprefix("bytes=").partition("-")[0]) if told else 0
            rest = content[first:]
            self.send_response(206 if told else 200)
            self.send_header("ETag", f'"{digest}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(rest)))
            if told:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            if name in hub.large and hub.spoiled:
                hub.spoiled -= 1
                rest = bytes([rest[0] ^ 1]) + rest[1:]
            cut = hub.breaks.pop(0) if name in hub.large and hub.breaks else len(rest)
            self.wfile.write(rest[:cut])
            hub.served.append((name, first, min(cut, len(rest))))
            if cut < len(rest):
                self.wfile.flush()
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
