"""Sharing through an S3 remote: a local server that speaks S3."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.clones import clone, copied_origin

pytestmark = [
    pytest.mark.pipeline_slow,
    pytest.mark.skipif(
        importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None,
        reason="moto[server] is not installed, so there is no S3 server to test against; `make setup` installs it",
    ),
]
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a local S3 server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(
                        urllib.request.Request(f"{address}/bench", method="PUT"), timeout=5
                    )
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline, "moto did not start"
                    time.sleep(0.2)
            yield address
        finally:
            process.terminate()


def test_results_travel_through_s3(tmp_path: Path, server: str) -> None:
    source = copied_origin(tmp_path)
    mine = clone(tmp_path / "mine", source)
    mine.environment |= CREDENTIALS
    mine.ok("dvc", "pull")
    mine.sh("dvc remote add -q s3 s3://bench/palimpsest && dvc remote default -q s3")
    mine.sh(f"dvc remote modify -q s3 endpointurl {server} && git commit -qam 'Share through S3'")
    mine.sh("dvc push -q && git push -q")
    assert "in sync" in mine.ok("dvc", "status", "--cloud")
    shutil.rmtree(source / "store")
    fresh = clone(tmp_path / "fresh", source)
    fresh.environment |= CREDENTIALS
    assert json.loads(fresh.ok("dvc", "data", "status", "--json"))["not_in_cache"]
    fresh.ok("dvc", "pull")
    assert fresh.made() == {}
    assert "found whole" in fresh.ok("palimpsest", "share")
