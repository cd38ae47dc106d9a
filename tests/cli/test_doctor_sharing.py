"""The doctor's look at DVC: a real project, a real folder as remote, real locks."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from palimpsest.cli import doctor_sharing as sharing
from palimpsest.findings import FAIL, OK, WARN, Check


def dvc(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", *arguments]
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder / "site")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with DVC and nothing else."""
    folder = tmp_path_factory.mktemp("tracked")
    dvc(folder, "init", "--no-scm")
    return folder


@pytest.fixture
def folder(tracked: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    made = tmp_path / "project"
    shutil.copytree(tracked, made)
    return made


def configure(folder: Path, text: str) -> None:
    (folder / ".dvc/config").write_text(text, encoding="utf-8")


def found(folder: Path, subject: str) -> Check:
    (check,) = [check for check in sharing.sharing(folder) if check.subject == subject]
    return check


def test_a_folder_without_dvc_and_settings_that_cannot_be_read_are_told(tmp_path: Path, folder: Path) -> None:
    (check,) = sharing.sharing(tmp_path)
    assert check.level == WARN and "not tracked by DVC" in check.found
    configure(folder, "[cache]\n    type = magic\n")
    (check,) = sharing.sharing(folder)
    assert check.level == WARN and "cannot read its settings" in check.found


def test_without_a_remote_it_says_how_to_have_one(folder: Path) -> None:
    check = found(folder, "remote")
    assert check.level == WARN and check.remedy.startswith("dvc remote add --default")
    configure(folder, "['remote \"shared\"']\n    url = /somewhere\n")
    assert found(folder, "remote").remedy == "dvc remote default shared"


def test_a_folder_as_remote_is_written_to(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    dvc(folder, "remote", "add", "--default", "shared", "../remote")
    check = found(folder, "remote")
    assert check.level == OK and str(tmp_path / "remote") in check.found
    assert list((tmp_path / "remote").iterdir()) == []
    (folder / "x").write_text("x")
    dvc(folder, "add", "x")
    dvc(folder, "push")
    assert found(folder, "remote").level == OK


@pytest.mark.parametrize(
    ("url", "problem"),
    [("/dev/full", "not a folder"), ("/no/such/disk/remote", "not mounted"), ("/proc/1", "written")],
)
def test_a_folder_that_cannot_be_a_remote_is_told_with_the_reason(
    folder: Path, url: str, problem: str
) -> None:
    configure(folder, f"[core]\n    remote = shared\n['remote \"shared\"']\n    url = {url}\n")
    check = found(folder, "remote")
    assert check.level == WARN and problem in check.found and check.remedy


class Refusing(BaseHTTPRequestHandler):
    """An object store that knows nobody."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def bucket(folder: Path, port: int) -> None:
    configure(
        folder,
        "[core]\n    remote = s\n['remote \"s\"']\n    url = s3://bucket/results\n"
        f"    endpointurl = http://127.0.0.1:{port}\n    access_key_id = x\n    secret_access_key = y\n    region = eu-west-1\n",
    )


def test_a_bucket_that_refuses_and_one_that_does_not_answer(folder: Path) -> None:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    bucket(folder, server.server_port)
    check = found(folder, "remote")
    assert check.level == WARN and "refused: Access Denied" in check.found
    server.shutdown()
    server.server_close()
    check = found(folder, "remote")
    assert check.level == WARN and "cannot be reached" in check.found
    with socket.socket() as silent:  # accepts, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        bucket(folder, silent.getsockname()[1])
        began = time.monotonic()
        assert "cannot be reached" in found(folder, "remote").found
        assert time.monotonic() - began < 3 * sharing.PATIENCE


def test_a_bucket_is_written_to_and_left_as_it_was(folder: Path) -> None:
    moto = pytest.importorskip("moto.server", reason="moto stands in for S3")
    import botocore.session

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        _, port = server.get_host_and_port()
        options = {"aws_access_key_id": "x", "aws_secret_access_key": "y", "region_name": "us-east-1"}
        client = botocore.session.Session().create_client(
            "s3", endpoint_url=f"http://127.0.0.1:{port}", **options
        )
        bucket(folder, port)
        assert "bucket does not exist" in found(folder, "remote").found
        client.create_bucket(Bucket="bucket")
        assert found(folder, "remote").level == OK
        assert client.list_objects_v2(Bucket="bucket")["KeyCount"] == 0
    finally:
        server.stop()


def test_other_remotes_are_named_but_not_tried(folder: Path) -> None:
    configure(folder, "[core]\n    remote = g\n['remote \"g\"']\n    url = gs://bucket/results\n")
    check = found(folder, "remote")
    assert check.level == OK and "not tried here" in check.found


def test_the_cache_is_weighed(folder: Path, tmp_path: Path) -> None:
    assert "is made with the first" in found(folder, "cache").found
    (folder / "x").write_bytes(b"x" * (3 << 20))
    dvc(folder, "add", "x")
    check = found(folder, "cache")
    assert check.level == OK and "3.0 MiB" in check.found and "reflink,copy" in check.found
    assert "the same file system" in check.found
    dvc(folder, "cache", "dir", str(tmp_path / "x"))
    (tmp_path / "x").write_text("a file")
    assert found(folder, "cache").level == FAIL


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system to write to")
def test_a_cache_on_another_file_system_cannot_be_linked_to(folder: Path) -> None:
    other = Path("/dev/shm") / f"palimpsest-{os.getpid()}"
    other.mkdir()
    try:
        dvc(folder, "cache", "dir", str(other))
        dvc(folder, "config", "cache.type", "hardlink,copy")
        check = found(folder, "cache")
        assert check.level == WARN and "another file system" in check.found and "symlink" in check.remedy
        dvc(folder, "config", "cache.type", "symlink")
        assert found(folder, "cache").level == OK
    finally:
        shutil.rmtree(other)


HOLD = "import sys, zc.lockfile; held = zc.lockfile.LockFile(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


def test_a_dvc_command_at_work_is_told_from_one_that_was_killed(folder: Path) -> None:
    path = folder / ".dvc/tmp/lock"
    path.parent.mkdir(exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        check = found(folder, "dvc lock")
        assert check.level == WARN and str(holder.pid) in check.found
        holder.kill()
    assert path.exists() and found(folder, "dvc lock").level == OK


def test_claims_of_processes_that_are_gone_are_told_from_those_of_living_ones(folder: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    table = folder / ".dvc/tmp/rwlock"
    table.parent.mkdir(exist_ok=True)
    table.write_text(json.dumps({"write": {"/data": {"pid": gone.pid, "cmd": "dvc add data"}}, "read": {}}))
    check = found(folder, "dvc lock")
    assert check.level == WARN and "gone" in check.found and "rwlock" in check.remedy
    table.write_text(json.dumps({"read": {"/data": [{"pid": os.getpid(), "cmd": "dvc push"}]}}))
    assert "in use by" in found(folder, "dvc lock").found
    table.write_text("{")
    assert found(folder, "dvc lock").level == OK
