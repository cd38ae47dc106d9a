"""The commands of docs/cluster.md, executed in their order on a one-node Slurm; and the profiles it names."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline import slurm
from tests.pipeline.project import ROOT, Project

PAGE = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
PROFILES = sorted(path.parent.name for path in (ROOT / "profiles").glob("*/config.yaml"))
PLUGINS = {
    "slurm": "snakemake_executor_plugin_slurm",
    "slurm-cpu": "snakemake_executor_plugin_slurm",
    "kubernetes": "snakemake_executor_plugin_kubernetes",
    "aws-batch": "snakemake_executor_plugin_aws_batch",
}
OBSTACLE = slurm.obstacle()
HASTY = ["--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1"]


def profile(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text(encoding="utf-8"))


def test_the_page_names_every_profile_and_every_profile_it_names_exists() -> None:
    named = set(re.findall(r"profiles/([a-z-]+)", PAGE))
    assert named == set(PROFILES) - {"default"}
    for command in COMMANDS:
        for name in re.findall(r"--profile (\S+)", command):
            assert (ROOT / name / "config.yaml").is_file(), command


@pytest.mark.parametrize("name", [name for name in PROFILES if name != "default"])
def test_profiles_use_options_that_snakemake_knows(name: str) -> None:
    """Options of plugins are known only where the plugin is installed; the others always are."""
    shown = subprocess.run(
        [sys.executable, "-m", "snakemake", "--help"], capture_output=True, text=True, check=True
    )
    known = set(re.findall(r"--([a-z][a-z0-9-]+)", shown.stdout))
    theirs = (f"{profile(name)['executor']}-", "storage-s3-")
    installed = find_spec(PLUGINS[name]) and (
        "default-storage-provider" not in profile(name) or find_spec("snakemake_storage_plugin_s3")
    )
    for option in profile(name):
        assert option in known or (option.startswith(theirs) and not installed), f"{name}: {option}"


@pytest.fixture
def store() -> Iterator[tuple[str, Any]]:
    """The address of an S3 server with an empty bucket, and a client of it."""
    for module in ("moto", "flask", "snakemake_storage_plugin_s3"):
        if not find_spec(module):
            pytest.skip(f"{module} is not installed")
    import botocore.session
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "y", "region_name": "us-east-1"}
        client = botocore.session.Session().create_client("s3", endpoint_url=address, **keys)
        client.create_bucket(Bucket="bucket")
        yield address, client
    finally:
        server.stop()


@pytest.fixture
def bucket(store: tuple[str, Any]) -> list[str]:
    """Snakemake's options for keeping artifacts there."""
    place = ["--default-storage-provider", "s3", "--default-storage-prefix", "s3://bucket/results"]
    access = ["--storage-s3-access-key", "x", "--storage-s3-secret-key", "y"]
    return [*place, "--storage-s3-endpoint-url", store[0], *access]


@pytest.mark.pipeline_slow
@pytest.mark.parametrize("name", ["kubernetes", "aws-batch"])
def test_profiles_of_clouds_can_be_planned_with(
    name: str, bucket: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as it goes without the service: Snakemake reads the profile, loads the plugins and plans."""
    if not find_spec(PLUGINS[name]):
        pytest.skip(f"{PLUGINS[name]} is not installed")
    for variable in profile(name).get("envvars", []):
        monkeypatch.setenv(variable, "none")
    done = Project(tmp_path).snakemake("-n", "--profile", f"profiles/{name}", *bucket)
    assert done.returncode == 0 and "generate" in done.stdout, done.stdout


@pytest.mark.pipeline_slow
def test_the_pipeline_runs_with_its_artifacts_in_a_bucket(
    store: tuple[str, Any], bucket: list[str], project: Project, tmp_path: Path
) -> None:
    """Under the names that they have in a folder; jobs read and write where Snakemake puts the files for them."""
    names = project.artifacts()
    other = project.copy(tmp_path / "other")
    for name in names:
        (other.folder / name).unlink()
    shutil.rmtree(
        (other.folder / project.find("reports/scratch-*/index.html").relative_to(project.folder)).parent
    )
    done = other.snakemake(*bucket)
    assert done.returncode == 0, done.stdout
    kept = {entry["Key"] for entry in store[1].list_objects_v2(Bucket="bucket")["Contents"]}
    assert {key for key in kept if not key.startswith("results/logs/")} == {
        f"results/{name}" for name in names
    }
    assert other.artifacts() == set(), "artifacts of a run with a storage stay in the storage"
    again = other.snakemake("-n", *bucket)
    assert "Nothing to be done" in again.stdout, again.stdout


@pytest.mark.slow
@pytest.mark.pipeline_slow
@pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)
def test_the_commands_of_the_page_work(project: Project) -> None:
    """In a finished project whose report is taken away before every real run, so that there is something to submit."""
    assert [line.split()[0] for line in COMMANDS].count("snakemake") >= 5
    (project.folder / "overlay.yaml").write_text(yaml.safe_dump(project.settings), encoding="utf-8")
    report = project.find("reports/scratch-*/index.html")
    with slurm.one_node(gpus=1):
        for line in COMMANDS:
            if line.startswith("snakemake --profile"):
                shutil.rmtree(report.parent)
            program, *arguments = shlex.split(line)
            if program == "palimpsest":
                command = [sys.executable, "-m", "palimpsest.cli", *arguments, "--config", "overlay.yaml"]
            else:
                assert program == "snakemake", line
                command = [
                    sys.executable,
                    "-m",
                    "snakemake",
                    *arguments,
                    *HASTY,
                    "--configfile",
                    "overlay.yaml",
                ]
            done = subprocess.run(
                command,
                cwd=project.folder,
                env=project.environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            assert report.is_file() or "-n" in arguments, line
