from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Run


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys\nfrom palimpsest.cli.main import app\n"
        "try:\n app(['--help'])\nexcept SystemExit:\n pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'polars', 'pyarrow', 'numpy', 'snakemake', 'pydantic'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert "LOADED []" in done.stdout
    assert spent < 2.0, "processor seconds; half a second is usual"
    for command in ("doctor", "explain", "new-method", "cite", "concise-sets", "validate"):
        assert command in done.stdout


def test_every_command_needs_a_project_folder(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for arguments in (["explain", "x"], ["cite"], ["validate"]):
        result = run(*arguments)
        assert result.exit_code == 1
        assert "project folder" in result.output


def test_validate_accepts_the_shipped_settings(run: Run) -> None:
    result = run("validate")
    assert result.exit_code == 0, result.output
    assert "experiments/paper.yaml: ok" in result.output
    assert "methods/uce.yaml: ok" in result.output


def test_validate_tells_every_problem_of_every_file(run: Run, project: Path) -> None:
    (project / "experiments" / "bad.yaml").write_text(
        "seed: -1\nsampler: {stpes: 3}\nmethods: {uce: [nope]}\n"
    )
    (project / "methods" / "broken.yaml").write_text(
        "method: uce\ntitle: B\nrun: [a]\npresets: {a: {lamb: -1}}\n"
    )
    result = run("validate", "experiments/bad.yaml", "methods/broken.yaml", "methods/esd.yaml")
    assert result.exit_code == 1
    for part in ("seed", "stpes", "lamb", "methods/esd.yaml: ok", "2 file(s) cannot be used"):
        assert part in result.output, part


def test_validate_finds_an_unknown_preset_of_an_overlay(run: Run, project: Path) -> None:
    (project / "experiments" / "bad.yaml").write_text("methods: {uce: [diffusers2024]}\n")
    result = run("validate", "experiments/bad.yaml")
    assert result.exit_code == 1
    assert "diffusers2025" in result.output


def test_cite_names_each_entry_once(run: Run) -> None:
    result = run("cite")
    assert result.exit_code == 0, result.output
    keys = re.findall(r"^@\w+\{([^,]+),", result.output, flags=re.MULTILINE)
    assert len(keys) == len(set(keys))
    assert {"gandikota2024unified", "molder2021sustainable", "lin2024evaluating"} <= set(keys)
    assert result.output.count("{") == result.output.count("}")


def test_cite_follows_the_experiment(run: Run, project: Path) -> None:
    (project / "experiments" / "one.yaml").write_text(
        "experiment: one\nmethods: {sd: [default], uce: [compvis2023]}\n"
    )
    assert "gandikota2023erasing" in run("cite").output
    assert "gandikota2023erasing" not in run("cite", "one").output
    refused = run("cite", "nobody")
    assert refused.exit_code == 1
    assert "'paper'" in refused.output


def test_concise_sets_of_the_papers_table(run: Run) -> None:
    result = run("concise-sets", ROOT / "data/reference/suppression_table8.csv")
    assert result.exit_code == 0, result.output
    for line in ("nudity: {nudity}", "violence: {violence, blood}", "horror: {horror, human flesh}"):
        assert line in result.output


def test_concise_sets_refuses_what_is_no_matrix(run: Run, project: Path) -> None:
    (project / "bad.csv").write_text("a,b\n1,x\n")
    for path in ("bad.csv", "none.csv"):
        result = run("concise-sets", path)
        assert result.exit_code == 1
        assert path in result.output
