"""Where jobs run: in a child of a process that has loaded the heavy libraries once, or in a child of their own.

The server forks a fresh child for every job, so that a job need not start from nothing. Only third-party libraries are preloaded, never
this project's code: a child imports that from disk as any job does, so an edit during a run is seen. A job ends when the process that
asked for it does, and the server ends with the run that started it. A job that is killed cannot say so itself; whoever asked for it
leaves the record that the report reads.

The socket lies in a private folder of this machine, not in the project, which other machines and other runs may share; only processes that
the run starts know the way there. So no job of another run, and none that a scheduler starts, is served by it.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# "0" turns the server off; a path names one that runs already: that of this run, or one for many short runs.
SETTING = "PALIMPSEST_FORKSERVER"
# The process id of the run; set where its jobs run on the same machine, so that they end when it is killed.
RUN = "PALIMPSEST_RUN"
POLL = 1.0
# Seconds within which a server has a socket; without one the first jobs would load the libraries themselves, beside it.
LISTENS = 10.0
PREFIX = "palimpsest-"
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


def setting() -> str:
    """What the environment says: "" (start a server), "0" (have none) or the path of one that runs already."""
    value = os.environ.get(SETTING, "")
    return "" if value == "1" else value


def start() -> subprocess.Popen[bytes] | None:
    """Start a server for this run, which is its parent process. None where there is one, or none can be had (no fork, GPU in use).

    Processes that are started from now on find it by their environment.
    """
    if not hasattr(os, "fork") or setting() or Path("/dev/nvidiactl").exists():
        return None
    path = Path(tempfile.mkdtemp(prefix=PREFIX)) / "socket"
    server = launch(path)
    os.environ[SETTING] = str(path)
    return server


def launch(path: Path) -> subprocess.Popen[bytes]:
    """A server that listens at `path` until this process ends. It takes jobs at once and begins them when it has loaded what they need."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "palimpsest.forkserver", str(os.getpid()), str(path)]
    server = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + LISTENS
    while not path.exists() and server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return server


def stop(server: subprocess.Popen[bytes] | None) -> None:
    """End a server that `start` gave."""
    if server is not None:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(5)
        _remove(Path(os.environ.pop(SETTING)))


def _remove(path: Path) -> None:
    """Remove a socket, and the folder if it was made for it."""
    path.unlink(missing_ok=True)
    if path.parent.name.startswith(PREFIX):
        with contextlib.suppress(OSError):
            path.parent.rmdir()


# --- the side that asks ---------------------------------------------------------------------------------------------------------


def do(spec: Mapping[str, Any], log: Path) -> int:
    """Make a cell, by the server or in a child of this process, its output going to `log`. Its exit status; negative: the signal that
    killed it, which is recorded for the report unless the whole run was ended."""
    status = served(spec, log, os.environ)
    if status is None and not _run_lives():
        return 1
    if status is None:
        status = alone(spec, log)
        if status < 0 and _run_lives():
            record_killed(spec, -status)
    return status


def served(spec: Mapping[str, Any], log: Path, environment: Mapping[str, str]) -> int | None:
    """The same by the server alone, with an environment of the job's own; None when no server answers. May be called by several threads."""
    status = ask(spec, log, environment)
    if status is not None and status < 0 and _run_lives():
        record_killed(spec, -status)
    return status


def ask(spec: Mapping[str, Any], log: Path, environment: Mapping[str, str] | None = None) -> int | None:
    """Have a job done by the server. Its exit status as above, or None when no server answers, also one that died meanwhile."""
    known = setting()
    if known in ("", "0"):
        return None
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(known)
        except OSError:
            return None
        asked = {
            "spec": spec,
            "cwd": os.getcwd(),
            "path": sys.path,
            "environment": dict(environment or os.environ),
        }
        message = json.dumps(asked).encode()
        try:
            with open(log, "ab") as output:
                descriptors = array.array("i", [output.fileno()])
                connection.sendmsg(
                    [struct.pack("!Q", len(message))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
                )
                connection.sendall(message)
                while not select.select([connection], [], [], POLL)[0]:
                    if not _run_lives():
                        return 130  # the child ends when the connection does
                answer = connection.recv(4)
        except (ConnectionError, BrokenPipeError):
            return None
    return struct.unpack("!i", answer)[0] if len(answer) == 4 else None


def alone(spec: Mapping[str, Any], log: Path) -> int:
    """Do a job in a child of this process, which must not have loaded anything heavy yet. Its exit status as above."""
    from palimpsest.job import run_logged

    if not hasattr(os, "fork"):
        run_logged(spec, log)
        return 0
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _end_when(lambda: os.getppid() != parent or not _run_lives())
        try:
            run_logged(spec, log)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def record_killed(spec: Mapping[str, Any], number: int) -> None:
    """Leave the record of a job that a signal ended, for the report."""
    from palimpsest import store
    from palimpsest.job import failure_path

    name = signal.Signals(number).name if number in set(signal.Signals) else "unknown"
    hint = (
        "; the kernel does that when memory runs out: run fewer jobs at a time (`snakemake --cores 1`) or lower the batch size"
        if number == signal.SIGKILL
        else ""
    )
    record = {
        "step": spec["step"],
        "where": dict(spec["where"]),
        "key": spec["key"],
        "status": "killed",
        "signal": number,
        "reason": f"killed by signal {number} ({name}){hint}",
    }
    try:
        store.write_json(record, failure_path(spec["key"]))
    except OSError as also:
        print(f"that {spec['output']} was killed could not be recorded: {also}", file=sys.stderr)


# --- the server -----------------------------------------------------------------------------------------------------------------


def serve(parent: int, path: Path) -> None:
    """Accept jobs until the parent process is gone."""
    listener = socket.socket(socket.AF_UNIX)
    previous = os.umask(0o177)
    listener.bind(str(path))
    os.umask(previous)
    listener.listen(64)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the run, which ends this server
    for name in PRELOAD:
        if os.getppid() != parent:
            return
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _know_layouts()
    gc.collect()
    gc.freeze()  # a child's collections need not walk, and thereby copy, what all children share
    woken, waker = socket.socketpair()
    for end in (woken, waker):
        end.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that the end of a child wakes the loop
    children: dict[int, socket.socket] = {}
    while os.getppid() == parent:
        ready, _, _ = select.select([listener, woken], [], [], POLL)
        if woken in ready:
            woken.recv(4096)
        _answer_ended(children)
        if listener in ready:
            connection, _ = listener.accept()
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for mine in (listener, woken, waker, *children.values()):
                    mine.close()
                os._exit(_child(connection))
            children[child] = connection
    _remove(path)


def _know_layouts() -> None:
    """Let transformers make its table of how weights were named in earlier versions, which every process makes for its first model."""
    with contextlib.suppress(Exception):
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("clip_text_model")


def _answer_ended(children: dict[int, socket.socket]) -> None:
    """Tell whoever asked how each child ended that has ended."""
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            return
        with children.pop(child) as connection, contextlib.suppress(OSError):
            connection.sendall(struct.pack("!i", os.waitstatus_to_exitcode(status)))


def _child(connection: socket.socket) -> int:
    """Receive one job, do it, give its exit status."""
    server = os.getppid()
    try:
        header, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(4))
        descriptor = array.array("i", ancillary[0][2])[0]
        length = struct.unpack("!Q", header)[0]
        body = b""
        while len(body) < length:
            block = connection.recv(length - len(body))
            if not block:
                return 1
            body += block
        message = json.loads(body)
    except (OSError, IndexError, struct.error, ValueError):
        return 1
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(message["cwd"])
    os.environ.clear()
    os.environ.update(message["environment"])
    _import_from(message["path"])
    _end_when(lambda: os.getppid() != server, connection)
    status = _do(message["spec"])
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _import_from(path: list[str]) -> None:
    """Import this project's code from where the asking process does."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "palimpsest"]:
        del sys.modules[name]
    sys.path[:] = path
    importlib.invalidate_caches()


def _do(spec: Mapping[str, Any]) -> int:
    import traceback

    from palimpsest.job import run

    try:
        run(spec)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


# --- nothing outlives its run ---------------------------------------------------------------------------------------------------


def _end_when(over: Callable[[], bool], connection: socket.socket | None = None) -> None:
    """End this process as soon as `over()` holds, or at once when the other end of the connection is gone."""

    def watch() -> None:
        while not over():
            if connection is None:
                time.sleep(POLL)
            elif select.select([connection], [], [], POLL)[0] and not connection.recv(1, socket.MSG_PEEK):
                break
        os._exit(130)

    threading.Thread(target=watch, daemon=True).start()


def _run_lives() -> bool:
    """Whether the run that this job belongs to is alive; True where that cannot be known."""
    run = os.environ.get(RUN, "")
    if not run.isdigit():
        return True
    try:
        os.kill(int(run), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
