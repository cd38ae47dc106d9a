"""A process that has loaded the heavy libraries once and forks a fresh child for every job, so that a job need not start from nothing.

Only third-party libraries are preloaded, never this project's code: a child imports that from disk as any job does, so an edit during a
run is seen. Jobs run in their own interpreter when no server answers. The socket is a file that only its owner can open; a child ends
when the process that asked for it does, and the server ends with the run that started it.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOCKET = Path(".palimpsest/forkserver.sock")
# What the steps import, none of it used before the fork: torch's and polars' thread pools start with their first work, in the child.
# The few threads that exist (allocators' housekeeping) belong to allocators that prepare for forks themselves.
PRELOAD = (
    "numpy",
    "PIL.Image",
    "PIL.PngImagePlugin",
    "pydantic",
    "pandas",  # by pyarrow, whenever it is given a list
    "pyarrow.compute",
    "pyarrow.parquet",
    "polars",
    "torch",
    "safetensors.torch",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.schedulers.scheduling_dpmsolver_multistep",
    "diffusers.schedulers.scheduling_ddim",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "transformers.models.t5.modeling_t5",
    "transformers.models.t5.tokenization_t5",
)


def start() -> subprocess.Popen[bytes] | None:
    """Start a server for this run, which is its parent process. None where it cannot be had (no fork, GPU in use)."""
    if (
        not hasattr(os, "fork")
        or os.environ.get("PALIMPSEST_FORKSERVER") == "0"
        or Path("/dev/nvidiactl").exists()
    ):
        return None
    SOCKET.parent.mkdir(exist_ok=True)
    SOCKET.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "palimpsest.forkserver", str(os.getpid())], env=environment
    )


def stop(server: subprocess.Popen[bytes] | None) -> None:
    """End a server that `start` gave."""
    if server is not None:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(5)
        SOCKET.unlink(missing_ok=True)


def ask(spec: Mapping[str, Any], log: Path) -> int | None:
    """Have a job done by the server, its output going to `log`. Its exit status, or None when no server answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(SOCKET))
        except OSError:
            return None
        message = json.dumps({"spec": spec, "cwd": os.getcwd()}).encode()
        with open(log, "ab") as output:
            descriptors = array.array("i", [output.fileno()])
            connection.sendmsg(
                [struct.pack("!Q", len(message))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
            )
            connection.sendall(message)
            answer = connection.recv(4)
    return struct.unpack("!i", answer)[0] if len(answer) == 4 else 1


def serve(parent: int) -> None:
    """Accept jobs until the parent process is gone."""
    listener = socket.socket(socket.AF_UNIX)
    previous = os.umask(0o177)
    listener.bind(str(SOCKET))
    os.umask(previous)
    listener.listen(64)
    listener.settimeout(1.0)
    for name in PRELOAD:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a child's collections need not walk, and thereby copy, what all children share
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while os.getppid() == parent:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os._exit(_child(connection))
        connection.close()


def _child(connection: socket.socket) -> int:
    """Receive one job, do it, report its status."""
    connection.settimeout(None)
    try:
        header, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(4))
        descriptor = array.array("i", ancillary[0][2])[0]
        length = struct.unpack("!Q", header)[0]
        body = b""
        while len(body) < length:
            body += connection.recv(length - len(body))
        message = json.loads(body)
    except (OSError, IndexError, struct.error, ValueError):
        return 1
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(message["cwd"])
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    status = _do(message["spec"])
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):
        connection.sendall(struct.pack("!i", status))
    return status


def _end_with(connection: socket.socket) -> None:
    """End this child at once when the process that asked for it is gone."""
    if connection.recv(1, socket.MSG_PEEK) == b"":
        os._exit(130)


def _do(spec: Mapping[str, Any]) -> int:
    import traceback

    from palimpsest.job import run

    try:
        run(spec)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve(int(sys.argv[1]))
