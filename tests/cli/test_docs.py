"""What the README and the guide tell people to type exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import typer.main

from palimpsest.cli.main import app
from tests.cli.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"```sh\n(.*?)```|`([^`\n]+)`", flags=re.DOTALL)


def commands(page: Path, program: str) -> list[str]:
    """Lines of code on a page that start with a program."""
    found = [block or inline for block, inline in CODE.findall(page.read_text(encoding="utf-8"))]
    lines = [line.strip() for text in found for line in text.splitlines()]
    return [line for line in lines if line.split(" ")[0] == program and " " in line]


def targets() -> set[str]:
    return set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_make_targets_and_palimpsest_commands_exist(page: Path) -> None:
    known = set(typer.main.get_command(app).commands)
    for line in commands(page, "make"):
        wanted = [w for w in line.split("#")[0].split()[1:] if "=" not in w]
        assert set(wanted) <= targets(), line
    for line in commands(page, "palimpsest"):
        assert line.split()[1] in known | {"--help"}, line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readme_names_the_two_commands() -> None:
    assert {"make report", "make test"} <= {
        line.split("#")[0].strip() for line in commands(ROOT / "README.md", "make")
    }


@pytest.mark.parametrize("target", ["report", "test", "test-slow", "lint", "world", "lock"])
def test_every_target_sets_up_the_environment_first(target: str) -> None:
    planned = subprocess.run(
        ["make", "-n", target, "VENV=none/such"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert planned.index("tools/install.sh none/such/bin/python") < planned.rindex("none/such/bin/")


def test_an_experiment_is_passed_on_as_an_overlay() -> None:
    def planned(*arguments: str) -> str:
        return subprocess.run(
            ["make", "-n", "report", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    assert "--configfile experiments/tiny.yaml" in planned("EXPERIMENT=tiny")
    assert "--configfile" not in planned()


def test_a_python_that_is_too_old_is_refused_with_the_remedy(tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "needs Python 3.11 or newer; found: Python 3.9.1" in done.stderr
    assert "make setup PYTHON=" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_the_lock_is_hashed_and_names_no_index() -> None:
    lock = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert "://" not in lock
    assert "--index" not in lock
    entries = re.split(r"\n(?=[A-Za-z0-9])", lock.split("\n", 1)[1])
    assert all("--hash=sha256:" in entry for entry in entries)
    names = {re.split("[=<>; ]", entry.strip())[0].lower() for entry in entries}
    for file in ("requirements.in", "requirements-dev.in"):
        wanted = [
            n for n in (ROOT / file).read_text(encoding="utf-8").split("\n") if n and not n.startswith("#")
        ]
        assert {name.partition("[")[0] for name in wanted} <= names
