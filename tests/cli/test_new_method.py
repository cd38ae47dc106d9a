"""The written method is a real one: it fits, changes images at strength 1, and is the base at strength 0."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from palimpsest.cli import new_method
from tests.cli.conftest import ROOT, Run


@pytest.fixture
def source(project: Path) -> Path:
    """The project with its methods' sources."""
    shutil.copytree(ROOT / "src", project / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return project


@pytest.mark.parametrize(
    "name", ["Bad", "1st", "a-b", "", "class", "all", "micro", "x" * 41, "a/b", "..", "end_"]
)
def test_bad_names_are_refused(source: Path, name: str) -> None:
    with pytest.raises(new_method.BadName):
        new_method.write(name, source)
    assert not list(source.glob(f"methods/{name or '?'}.yaml"))


def test_an_existing_method_is_never_touched(source: Path, run: Run) -> None:
    before = (source / "methods" / "uce.yaml").read_bytes()
    result = run("new-method", "uce")
    assert result.exit_code == 1
    assert "exists; nothing was written" in result.output
    assert (source / "methods" / "uce.yaml").read_bytes() == before


def test_a_settings_file_alone_is_enough_to_refuse(source: Path) -> None:
    (source / "methods" / "mine.yaml").write_text("mine")
    with pytest.raises(new_method.BadName, match=r"mine\.yaml"):
        new_method.write("mine", source)
    assert not (source / "src/palimpsest/methods/mine.py").exists()


def test_outside_a_project_it_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(new_method.BadName, match="project folder"):
        new_method.write("mine", tmp_path)


def test_the_new_method_is_in_the_plan_at_once(source: Path, run: Run) -> None:
    assert run("new-method", "my_idea").exit_code == 0
    command = [sys.executable, "-m", "palimpsest.cli", "explain", "my_idea/default/uncased.detailed"]
    done = subprocess.run(
        command,
        cwd=source,
        env={"PYTHONPATH": str(source / "src"), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 'method = "palimpsest.methods.my_idea"' in done.stdout


def test_the_new_method_passes_lint(source: Path) -> None:
    module, *_ = new_method.write("my_idea", source)
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", ROOT / "pyproject.toml", source / module],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_new_method_erases(source: Path) -> None:
    import torch

    from palimpsest.methods.contract import Artifact, Target, ThemeTarget, TrainingData
    from palimpsest.sampling.pipeline import Conditioning
    from tests import tiny

    module, *_ = new_method.write("my_idea", source)
    spec = importlib.util.spec_from_file_location("my_idea_under_test", source / module)
    assert spec is not None
    assert spec.loader is not None
    method = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = method
    spec.loader.exec_module(method)

    from palimpsest.sampling.embeddings import encode

    pipeline = tiny.build()
    target = Target((ThemeTarget("uncased", ("gears", "gear"), "a robot"),))
    artifact = method.fit(pipeline, target, TrainingData(), method.Settings(), seed=0)
    basis = artifact.tensors["basis"]
    assert torch.allclose(basis @ basis.T, torch.eye(len(basis)), atol=1e-5)

    assert method.apply(pipeline, artifact, target, method.Settings(strength=0.0)) is pipeline
    applied = method.apply(pipeline, artifact, target, method.Settings())
    assert pipeline.hooks == ()
    embeddings = encode(pipeline, ["gears", "a house"])
    given = Conditioning(
        ("gears", "a house"), {"uncond": embeddings, "cond": embeddings}, torch.zeros(2, 4, 8, 8)
    )
    changed = applied.hooks[0].embed(applied, given).branches
    assert changed["uncond"] is embeddings
    along = ((changed["cond"] - artifact.tensors["centre"]) @ basis.T).abs().max()
    assert along < 1e-4
    assert ((embeddings - artifact.tensors["centre"]) @ basis.T).abs().max() > 100 * along
    assert isinstance(artifact, Artifact)
