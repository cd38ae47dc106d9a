"""One job per GPU: which GPUs there are is said by CUDA's own variable, so no GPU is needed to see who is given which."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from palimpsest import devices

TAKE = """
import sys
from palimpsest import devices
devices.take(int(sys.argv[1]))
print(__import__("os").environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv(devices.VISIBLE, "0,1,2,3")
    yield
    devices.release()


def job(wanted: int = 1) -> tuple[subprocess.Popen[str], str]:
    """A process that takes GPUs and holds them, and what it was given."""
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE, str(wanted)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: subprocess.Popen[str], kill: bool = False) -> None:
    if kill:
        process.kill()
    process.communicate()


def test_every_job_has_a_gpu_of_its_own_until_it_ends() -> None:
    jobs = [job() for _ in range(4)]
    assert [given for _, given in jobs] == ["0", "1", "2", "3"]
    end(jobs[2][0])
    end(jobs[1][0], kill=True)
    later = [job(), job()]
    assert [given for _, given in later] == ["1", "2"]
    for process, _ in (jobs[0], jobs[3], *later):
        end(process)


def test_more_jobs_than_gpus_share_evenly_and_nobody_waits() -> None:
    jobs = [job() for _ in range(6)]
    assert sorted(given for _, given in jobs) == ["0", "0", "1", "1", "2", "3"]
    for process, _ in jobs:
        end(process)


def test_a_job_may_ask_for_several_and_for_none() -> None:
    assert devices.take(0) == ["0", "1", "2", "3"] == devices.visible()
    process, given = job(3)
    assert given == "0,1,2"
    assert devices.take(2) == ["3", "0"] and os.environ[devices.VISIBLE] == "3,0"
    end(process)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("", []),
        ("-1", []),
        ("2", ["2"]),
        ("0, 2,-1,3", ["0", "2"]),
        ("GPU-8f1c, GPU-2a", ["GPU-8f1c", "GPU-2a"]),
    ],
)
def test_the_variable_is_read_as_cuda_reads_it(value: str, names: list[str], monkeypatch) -> None:
    monkeypatch.setenv(devices.VISIBLE, value)
    assert devices.visible() == names
    if len(names) < 2:  # nothing to choose, so what a scheduler chose stays
        assert devices.take(1) == names and os.environ[devices.VISIBLE] == value and not devices.HELD


def test_without_the_variable_the_machines_gpus_count(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(devices.VISIBLE)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(devices, "NODES", tmp_path)
    assert devices.visible() == ["0", "1"]


def test_a_folder_of_somebody_else_is_refused(tmp_path, monkeypatch) -> None:
    real = tmp_path / "theirs"
    real.mkdir()
    (tmp_path / f"palimpsest-gpus-{os.getuid()}").symlink_to(real)
    with pytest.raises(PermissionError, match="CUDA_VISIBLE_DEVICES to one GPU"):
        devices.take(1)


SNAKEFILE = """
from palimpsest import snake
onstart:
    snake.one_job_per_gpu(workflow)
rule all:
    input: expand("{n}.done", n=range(4))
rule paint:
    output: "{n}.done"
    resources: gpu=1
    script: "paint.py"
"""
# with the line by which the project's own script takes a GPU
SCRIPT = (Path(__file__).parents[1] / "workflow/scripts/cell.py").read_text(encoding="utf-8").splitlines()
PAINT = """
import os, time
from itertools import pairwise
from pathlib import Path
from palimpsest import devices
{take}
Path(snakemake.wildcards.n + ".began").write_text(str(time.time()) + " " + os.environ["CUDA_VISIBLE_DEVICES"])
end = time.time() + 30
while len(list(Path().glob("*.began"))) < int(os.environ["TOGETHER"]) and time.time() < end:
    time.sleep(0.02)
time.sleep(0.2)
Path(snakemake.output[0]).write_text(str(time.time()))
""".format(take=next(line for line in SCRIPT if line.startswith("devices.take(")))


@pytest.mark.parametrize(("asked", "together"), [((), 2), (("--resources", "gpu=1"), 1)])
def test_a_local_run_has_one_job_per_gpu(
    tmp_path, monkeypatch, asked: tuple[str, ...], together: int
) -> None:
    monkeypatch.setenv(devices.VISIBLE, "0,1")
    monkeypatch.setenv("TOGETHER", str(together))
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "paint.py").write_text(PAINT)
    command = [sys.executable, "-m", "snakemake", "--cores", "4", "--scheduler", "greedy", *asked]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spans = []
    for n in range(4):
        began, gpu = (tmp_path / f"{n}.began").read_text().split()
        spans.append((float(began), float((tmp_path / f"{n}.done").read_text()), gpu))
    most = max(sum(a <= start < b for a, b, _ in spans) for start, _, _ in spans)
    assert most == together
    for gpu in "01":
        own = sorted((a, b) for a, b, name in spans if name == gpu)
        assert all(before[1] <= after[0] for before, after in pairwise(own))
