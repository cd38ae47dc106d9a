"""A one-node Slurm of real daemons, for the time of a test: munge, a controller and a compute node, all on this machine."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue")
# Slurm's own variables are removed by Snakemake's executor before it submits, so only the default place is read by jobs.
CONFIG = Path("/etc/slurm/slurm.conf")
GRES = CONFIG.with_name("gres.conf")
MARK = "# For the time of a test of Palimpsest; may be deleted.\n"
# what stands for a GPU: Slurm hands out device files, whatever they are
DEVICES = ("/dev/null", "/dev/zero")


def obstacle() -> str:
    """Why no Slurm can be started here; empty when one can."""
    try:
        import snakemake_executor_plugin_slurm  # noqa: F401
    except ImportError:
        return "snakemake-executor-plugin-slurm is not installed"
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "only root can start Slurm's daemons"
    if any(
        path.exists() and not path.read_text(encoding="utf-8").startswith(MARK) for path in (CONFIG, GRES)
    ):
        return f"this machine has a Slurm of its own ({CONFIG.parent})"
    return ""


def _path() -> str:
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


def _configuration(folder: Path, gpus: int, memory: int) -> str:
    host = socket.gethostname().partition(".")[0]
    settings = {
        "ClusterName": "scratch",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": _free_port(),
        "SlurmdPort": _free_port(),
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/munge.sock",
        "CredType": "cred/munge",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": folder / "slurmd.log",
        # neither control groups nor an accounting data base
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "SchedulerParameters": "sched_interval=2,sched_min_interval=100000",
        "MpiDefault": "none",
        "SlurmdParameters": "config_overrides",  # the node counts as what is written below
        "MinJobAge": 300,
        "ReturnToService": 2,
        "GresTypes": "gpu",
    }
    lines = [f"{name}={value}" for name, value in settings.items()]
    cores = os.cpu_count() or 1
    generic = f"Gres=gpu:{gpus} " if gpus else ""
    lines.append(
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} {generic}State=UNKNOWN"
    )
    lines.append("PartitionName=main Nodes=ALL Default=YES State=UP")
    return MARK + "\n".join(lines) + "\n"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def one_node(gpus: int = 0, memory: int = 64000) -> Iterator[None]:
    """A running Slurm. gpus: how many stand-ins for GPUs it hands out, at most two; memory: what the node claims to have, in MB.

    Raises RuntimeError with the daemons' logs when the node does not come up.
    """
    # tests may run side by side, but there is one place for Slurm's settings
    with open(Path(tempfile.gettempdir()) / "palimpsest-slurm.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _daemons(gpus, memory):
            yield


@contextmanager
def _daemons(gpus: int, memory: int) -> Iterator[None]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munge wants its socket to be reachable by everybody
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    CONFIG.parent.mkdir(exist_ok=True)
    running: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "PATH": _path()}

    def start(*command: str) -> None:
        with open(folder / "daemons.log", "ab") as log:
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    try:
        CONFIG.write_text(_configuration(folder, gpus, memory), encoding="utf-8")
        GRES.write_text(
            MARK + "".join(f"Name=gpu File={device}\n" for device in DEVICES[:gpus]), encoding="utf-8"
        )
        places = {"key-file": key, "socket": folder / "munge.sock", "pid-file": folder / "munged.pid"}
        places |= {"seed-file": folder / "munge.seed", "log-file": folder / "munged.log"}
        start("munged", "--foreground", *(f"--{name}={path}" for name, path in places.items()))
        _wait(lambda: (folder / "munge.sock").exists(), folder)
        start("slurmctld", "-D", "-c")
        start("slurmd", "-D", "-c")
        _wait(_idle, folder)
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, check=False)
        for daemon in reversed(running):
            daemon.terminate()
        for daemon in running:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        CONFIG.unlink(missing_ok=True)
        GRES.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _idle() -> bool:
    done = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, check=False)
    return done.stdout.strip() == "idle"


def _wait(ready: object, folder: Path, seconds: float = 60) -> None:
    assert callable(ready)
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            logs = {path.name: path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log")}
            raise RuntimeError(f"Slurm did not come up: {logs}")
        time.sleep(0.2)
