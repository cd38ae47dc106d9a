"""The commands of docs/cluster.md, executed in their order on a one-node Slurm; and the profiles it names."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
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


@pytest.mark.pipeline_slow
@pytest.mark.parametrize("name", ["kubernetes", "aws-batch"])
def test_profiles_of_clouds_can_be_planned_with(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as it goes without the service: Snakemake reads the profile, loads the plugins and plans."""
    if not find_spec(PLUGINS[name]) or not find_spec("snakemake_storage_plugin_s3"):
        pytest.skip(f"{PLUGINS[name]} and snakemake_storage_plugin_s3 are not installed")
    for variable in profile(name).get("envvars", []):
        monkeypatch.setenv(variable, "none")
    done = Project(tmp_path).snakemake("-n", "--profile", f"profiles/{name}", "--forceall")
    assert done.returncode == 0, done.stdout


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
