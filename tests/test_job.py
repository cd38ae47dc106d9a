from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from palimpsest import closure, forkserver, job, store

ROOTS = ("palimpsest.steps.keywords", "palimpsest.job")
ERASE = ("palimpsest.steps.erase", "palimpsest.job")
THEMES = {"uncased": {"detailed": ["uncased", "gears"], "concise": ["gears"], "safe": "a robot"}}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/reference").symlink_to(Path(__file__).parents[1] / "data/reference")
    monkeypatch.chdir(tmp_path)


def spec(**changes):
    """A real cell: the keywords step with given concise sets."""
    made = {
        "step": "keywords",
        "where": {"name": "sets"},
        "key": "0123456789abcdef",
        "args": {"themes": THEMES, "keywords": {"concise": "given", "threshold": 50.0}},
        "inputs": [],
        "output": "data/shared/keywords/sets.0123456789abcdef.json",
        **closure.stamp(ROOTS),
        "recipe": {"step": "keywords"},
        "hints": {"threads": 1},
    }
    return {**made, **changes}


def in_process(asked) -> subprocess.CompletedProcess:
    """Run the job in its own interpreter, as Snakemake does."""
    code = "import json, sys; from palimpsest.job import run; run(json.load(sys.stdin))"
    return subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(asked), text=True, capture_output=True, check=False
    )


def test_a_job_writes_its_artifact_with_recipe_and_environment():
    asked = spec()
    assert in_process(asked).returncode == 0
    made = store.read_json(asked["output"])
    assert made["themes"]["uncased"]["concise"] == ["gears"]
    assert made["meta"]["key"] == asked["key"] and made["meta"]["environment"]["libraries"]["polars"]


def test_code_that_is_not_the_plans_stores_nothing_and_is_recorded():
    asked = spec(code="0" * 32, sources="0" * 32)
    done = in_process(asked)
    assert done.returncode != 0 and "the code changed since the plan of this run was made" in done.stderr
    assert not os.path.exists(asked["output"])
    record = store.read_json(job.failure_path(asked["key"]))
    assert record["status"] == "error" and "CodeChanged" in record["reason"]


def test_code_that_reads_otherwise_but_means_the_same_is_the_plans():
    asked = spec(sources="0" * 32)
    assert in_process(asked).returncode == 0 and os.path.exists(asked["output"])


def test_an_import_the_plan_did_not_count_stores_nothing():
    done = in_process(spec(**closure.stamp(("palimpsest.job",))))
    assert (
        done.returncode != 0 and "palimpsest.steps.keywords" in done.stderr and "not reachable" in done.stderr
    )


def test_a_success_clears_the_record_of_an_earlier_failure():
    in_process(spec(code="0" * 32, sources="0" * 32))
    assert job.failure_path("0123456789abcdef").exists()
    in_process(spec())
    assert not job.failure_path("0123456789abcdef").exists()


@pytest.fixture(scope="module")
def started():
    """A server and its address, which only the tests that ask for it find in their environment."""
    running = forkserver.start()
    if running is None:
        pytest.skip("no fork server on this machine (no fork, or a GPU)")
    address = os.environ.pop(forkserver.SETTING)
    deadline = time.monotonic() + 30
    while not Path(address).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    yield running, address
    os.environ[forkserver.SETTING] = address
    forkserver.stop(running)


@pytest.fixture
def server(started, monkeypatch):
    monkeypatch.setenv(forkserver.SETTING, started[1])
    return started[0]


def test_the_fork_server_makes_the_same_artifact_and_reports_failures(server, tmp_path):
    asked = spec()
    assert forkserver.ask(asked, tmp_path / "log") == 0
    assert store.read_json(asked["output"])["themes"]["uncased"]["concise"] == ["gears"]
    failing = spec(
        key="f" * 16,
        code="0" * 32,
        sources="0" * 32,
        output="data/shared/keywords/sets.ffffffffffffffff.json",
    )
    assert forkserver.ask(failing, tmp_path / "log") == 1
    assert "the code changed" in (tmp_path / "log").read_text()
    address = Path(os.environ[forkserver.SETTING])
    assert oct(address.stat().st_mode)[-3:] == "600" and oct(address.parent.stat().st_mode)[-3:] == "700"


@pytest.mark.slow
def test_only_processes_of_its_run_find_the_server(server, tmp_path):
    code = f"import sys; from pathlib import Path; from palimpsest import forkserver as f; print(f.ask({spec()!r}, Path('log')))"
    outsider = {name: value for name, value in os.environ.items() if name != forkserver.SETTING}
    for environment, answer in ((outsider, "None"), (dict(os.environ), "0")):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == answer, done.stderr
    assert not list(Path(".").rglob("*.sock")), "the project folder may be shared with other machines"


def test_a_server_leaves_nothing_behind():
    running = forkserver.start()
    if running is None:
        pytest.skip("no fork server on this machine (no fork, or a GPU)")
    folder = Path(os.environ[forkserver.SETTING]).parent
    forkserver.stop(running)
    assert not folder.exists() and forkserver.SETTING not in os.environ


def test_without_a_server_the_job_must_run_elsewhere(tmp_path):
    assert forkserver.ask(spec(), tmp_path / "log") is None


def killing(number: int):
    """A cell whose third-party code ends the process by a signal, as the kernel does when memory runs out."""
    folder = Path("plugin")
    folder.mkdir()
    (folder / "deadly.py").write_text(f"import os\nos.kill(os.getpid(), {number})\n")
    args = {"model": {}, "method": "deadly", "settings": {}, "target": {}, "seed": 0, "resolution": 64}
    return spec(step="erase", args=args, output="models/deadly.safetensors", **closure.stamp(ERASE))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_job_that_a_signal_ends_is_recorded_by_the_process_that_asked(tmp_path, number):
    asked = killing(number)
    code = "import json, sys; from pathlib import Path; from palimpsest import forkserver; "
    code += "sys.path.insert(0, 'plugin'); print(forkserver.do(json.load(sys.stdin), Path('log')))"
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(asked), text=True, capture_output=True, check=False
    )
    assert done.stdout.strip() == str(-number), done.stderr
    record = store.read_json(job.failure_path(asked["key"]))
    assert (record["status"], record["signal"]) == ("killed", number)
    assert number.name in record["reason"]
    assert ("memory" in record["reason"]) == (number == signal.SIGKILL)
    assert not os.path.exists(asked["output"])


@pytest.mark.slow
def test_a_job_the_server_lost_is_recorded_too(server, tmp_path):
    asked = killing(signal.SIGKILL)
    sys.path.insert(0, str(Path("plugin").absolute()))
    try:
        assert forkserver.do(asked, tmp_path / "log") == -signal.SIGKILL
    finally:
        del sys.path[0]
    assert store.read_json(job.failure_path(asked["key"]))["status"] == "killed"
    assert forkserver.ask(spec(), tmp_path / "log") == 0


def test_a_job_imports_from_where_the_asking_process_does(server, tmp_path):
    """One server may serve runs of several copies of the code."""
    copy = tmp_path / "src"
    shutil.copytree(Path(job.__file__).parent, copy / "palimpsest")
    (copy / "palimpsest/job.py").write_text("def run(spec):\n    raise ValueError('another copy')\n")
    sys.path.insert(0, str(copy))
    try:
        assert forkserver.ask(spec(), tmp_path / "log") == 1
    finally:
        del sys.path[0]
    assert "another copy" in (tmp_path / "log").read_text()


def test_the_server_ends_with_its_parent(tmp_path):
    code = "from palimpsest import forkserver; import time; s = forkserver.start(); print(s.pid if s else 0, flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    if not pid:
        parent.kill()
        pytest.skip("no fork server on this machine")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().split()[2]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.2)
    pytest.fail("the server outlived its parent")
