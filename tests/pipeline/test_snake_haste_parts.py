"""Every part of Snakemake that is replaced by a faster one gives what the part it replaces gives, on all kinds of rules and files."""

from __future__ import annotations

import copy
import gc
import logging
import os
import queue
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from logging.handlers import QueueHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("snakemake.api")

from snakemake import common, dag, io, iocontainers, jobs, output_index, resources, rules
from snakemake.exceptions import WildcardError
from snakemake.pathvars import Pathvars
from snakemake.scheduling import job_scheduler

from palimpsest import snake_haste
from palimpsest.snake_haste import graph, seam
from palimpsest.snake_haste import jobs as haste_of_jobs

SNAKEFILE = """
if {haste}:
    from palimpsest.snake_haste import hasten
    hasten()

rule all:
    input: "out/sum.txt", "out/kept/done.txt"

rule raw:
    output: temp("raw/{{name}}.txt")
    log: "logs/raw-{{name}}.log"
    resources: mem_mb=lambda wildcards, attempt: 10 * len(wildcards.name) * attempt
    shell: "echo {{wildcards.name}} > {{output}}"

checkpoint names:
    output: directory("names")
    shell: "mkdir {{output}}; touch {{output}}/a {{output}}/bb"

def found(wildcards):
    return ["each/%s.txt" % name for name in sorted(os.listdir(checkpoints.names.get().output[0])) if name[0] != "."]

rule each:
    input: ancient("raw/{{name}}.txt")
    output: file="each/{{name}}.txt", beside=touch("each/{{name}}.done")
    params: length=lambda wildcards: len(wildcards.name)
    shell: "cat {{input}} > {{output.file}}; echo {{params.length}} >> {{output.file}}"

rule sum:
    input: found
    output: "out/sum.txt"
    shell: "cat {{input}} > {{output}}"

rule kept:
    input: "raw/x.txt", same="raw/x.txt"
    output: "out/{{place}}/done.txt"
    wildcard_constraints: place="[a-z]+"
    shell: "cat {{input.same}} > {{output}}"
"""
RULES = ("raw", "names", "each", "sum", "kept", "all")
REPLACED: tuple[tuple[Any, str], ...] = (
    (dag.DAG, "update"),
    (dag.DAG, "check_directory_outputs"),
    (dag.DAG, "handle_temp"),
    (dag.ScriptProcessor, "process_job"),
    (io._IOFile, "apply_wildcards"),
    (io._IOFile, "check"),
    (io._IOFile, "is_storage"),
    (jobs.Job, "conda_env_spec"),
    (jobs.Job, "is_valid"),
    (jobs.Job, "log_info"),
    (job_scheduler.JobScheduler, "_free_resources"),
    (output_index.OutputIndex, "match_producers"),
    (rules.Rule, "apply_input_function"),
    (rules, "IOFile"),
)
OF_FLAGS: tuple[Any, ...] = (dag, jobs, rules)


@pytest.fixture(scope="module", autouse=True)
def _hastened() -> Iterator[None]:
    """The replacements, in this process and for this file only."""
    before = {(owner, name): vars(owner)[name] for owner, name in REPLACED}
    thresholds = gc.get_threshold()
    flagged = {module: module.is_flagged for module in (io, *OF_FLAGS)}
    snake_haste.hasten()
    yield
    for (owner, name), there in before.items():
        setattr(owner, name, there)
    for module, function in flagged.items():
        module.is_flagged = function
    if "__init__" in vars(iocontainers.Wildcards):
        del iocontainers.Wildcards.__init__
    gc.enable()
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def original(owner: Any, name: str) -> Any:
    """What was replaced."""
    there = vars(owner)[name]
    return (there.fget if isinstance(there, property) else there).__wrapped__


def test_all_parts_are_replaced_in_this_snakemake() -> None:
    for owner, name in REPLACED:
        assert original(owner, name), name
    assert "__init__" in vars(iocontainers.Wildcards)
    replaced = [vars(owner)[name] for owner, name in REPLACED]
    snake_haste.hasten()
    assert [vars(owner)[name] for owner, name in REPLACED] == replaced, "once"


def test_what_is_not_there_is_left_alone() -> None:
    class Later:
        kept = 1

        @property
        def asked(self) -> int:
            return 2

    seam.replace(None, "anything", lambda _: pytest.fail("nothing to replace"))
    seam.replace(Later, "gone", lambda _: pytest.fail("nothing to replace"))
    seam.replace(Later, "kept", lambda _: pytest.fail("no function"))
    assert set(vars(Later)) >= {"kept", "asked"} and Later.kept == 1
    seam.replace(Later, "asked", lambda ask: lambda self: ask(self) + 1)
    seam.replace(Later, "asked", lambda ask: lambda self: ask(self) + 1)
    assert Later().asked == 3


def test_garbage_is_collected_again_when_jobs_run() -> None:
    snake_haste.hasten()
    assert not gc.isenabled()
    snake_haste.collect_again()
    assert gc.isenabled()


def workflow(folder: Path, haste: bool, *arguments: str, code: int = 0) -> tuple[str, dict[str, str]]:
    """What Snakemake says of a small workflow of its own, and the files that it leaves."""
    folder.mkdir(exist_ok=True)
    (folder / "Snakefile").write_text(SNAKEFILE.format(haste=haste), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", *arguments],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    left = {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".snakemake" not in path.parts and path.name != "Snakefile"
    }
    return done.stdout + done.stderr, {name: text for name, text in left.items() if "snakemake/" not in name}


def told(text: str) -> list[str]:
    """What was said of jobs: lines, and the words of each, in any order, each line once: Snakemake runs jobs that are ready in an order
    that differs from run to run, and says twice that a file is removed where its job ends before a checkpoint."""
    words = r"^(rule|localrule|checkpoint|localcheckpoint|Removing|Would remove|    (input|output|log|reason|wildcards|resources):).*$"
    lines = [re.sub(r"tmpdir=\S+", "", found.group()) for found in re.finditer(words, text, re.MULTILINE)]
    return sorted({" ".join(sorted(re.split(r"[,\s]+", line))) for line in lines})


@pytest.mark.pipeline_slow
def test_other_workflows_are_looked_at_and_run_alike(tmp_path: Path) -> None:
    looked = [workflow(tmp_path / str(haste), haste, "-n")[0] for haste in (True, False)]
    assert told(looked[0]) == told(looked[1]) and any("mem_mb" in line for line in told(looked[0]))
    run = [workflow(tmp_path / str(haste), haste) for haste in (True, False)]
    assert told(run[0][0]) == told(run[1][0])
    assert any("Removing" in line and "temporary" in line for line in told(run[0][0]))
    assert run[0][1] == run[1][1]
    assert run[0][1]["out/sum.txt"] == "a\n1\nbb\n2\n" and not any(
        name.startswith("raw/") for name in run[0][1]
    )


def test_resources_that_cannot_be_worked_out_are_found_by_a_quiet_dry_run(tmp_path: Path) -> None:
    said, _ = workflow(tmp_path, True, "-n", "--quiet", "all", "--set-resources", "raw:mem_mb=1//0", code=1)
    assert "1//0" in said


def test_jobs_are_shown_to_who_asks_for_them(tmp_path: Path) -> None:
    pytest.importorskip("snakemake_logger_plugin_rich")
    said, _ = workflow(tmp_path, True, "-n", "--verbose", "--logger", "rich")
    assert said.count("Would run") == 5


def logger(**changes: Any) -> Any:
    """As much of Snakemake's logging as is asked for, with the logger of the default profile."""
    rich = pytest.importorskip("snakemake_logger_plugin_rich.event_handler")
    events = rich.EventHandler.__new__(rich.EventHandler)
    vars(events).update({"dryrun": True, "verbose": False, **changes})
    handler = SimpleNamespace(event_handler=events)
    own = SimpleNamespace(handlers=[QueueHandler(queue.Queue())])
    return SimpleNamespace(logger=own, plugin_handlers=[handler])


class Manager:
    """Snakemake's, which can be a key of a dictionary."""

    def __init__(self, like: Any) -> None:
        vars(self).update(vars(like))


def test_jobs_are_described_to_every_logger_but_the_one_that_leaves_them_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = haste_of_jobs.only_progress_is_shown
    assert asked(Manager(logger()))
    assert not asked(Manager(logger(verbose=True))) and not asked(Manager(logger(dryrun=False)))
    assert not asked(None) and not asked(Manager(SimpleNamespace()))
    other = logger()
    other.logger.handlers.append(logging.StreamHandler())
    assert not asked(Manager(other))
    two = logger()
    two.plugin_handlers *= 2
    assert not asked(Manager(two))
    stranger = logger()
    stranger.plugin_handlers[0].event_handler = SimpleNamespace(dryrun=True, verbose=False)
    assert not asked(Manager(stranger))
    monkeypatch.setattr(haste_of_jobs, "version", lambda _: "0.6.0")
    assert not asked(Manager(logger()))


def rule() -> Any:
    """As much of a rule as a file asks for."""
    paths = Pathvars.with_defaults()
    cache = SimpleNamespace(active=False)
    return SimpleNamespace(
        name="some", lineno=1, snakefile="Snakefile", pathvars=paths, workflow=SimpleNamespace(iocache=cache)
    )


PATHS = (
    "data/{method}/{variant}/{suite}-{shard}.{key}.parquet",
    "data/scores/uce/a_b-c.d/nsfw-0.parts.0123456789abcdef.parquet",
    "{method}/{method}.txt",
    "{method,[a-z]+}.{key}",
    "plain",
    "/absolute/{method}",
    "./here/{method}",
    "odd//{method}",
    "with space/{method}",
    " leading",
    "trailing ",
    "folder/{method}/",
    "<results>/{method}",
    "Ünicode/{method}",
    "{method}\n",
)
VALUES = {"method": "uce", "variant": "all.200", "suite": "nsfw", "shard": 3, "key": "0123456789abcdef"}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("flags", [(), ("ancient",), ("ancient", "temp"), ("directory",)])
def test_wildcards_are_filled_in_as_before(path: str, flags: tuple[str, ...]) -> None:
    marked: Any = path
    for name in flags:
        marked = io.flag(marked, name)
    owner = rule()
    file = io.IOFile(marked, rule=owner)
    ours, theirs = file.apply_wildcards(VALUES), original(io._IOFile, "apply_wildcards")(file, VALUES)
    assert str(ours) == str(theirs) and ours == theirs and hash(ours) == hash(theirs)
    assert type(ours) is type(theirs) and type(ours._file) is type(theirs._file) and ours.rule is theirs.rule
    assert ours.flags == theirs.flags and {*flags} == set(ours.flags)
    assert ours.is_storage == original(io._IOFile, "is_storage")(ours) == file.is_storage
    ours.flags["more"] = True
    assert "more" not in file.flags, "flags are the file's own"
    assert ours.regex() == theirs.regex() and ours.constant_prefix() == theirs.constant_prefix()
    assert (ours.apply_wildcards(VALUES)) == theirs.apply_wildcards({})


@pytest.mark.parametrize("path", PATHS)
def test_files_are_made_of_paths_and_of_files_as_before(path: str) -> None:
    make, owner = original(rules, "IOFile"), rule()
    for marked in (path, io.flag(path, "ancient"), io.flag(path, "ancient", False)):
        ours, theirs = rules.IOFile(marked, rule=owner), make(marked, rule=owner)
        again, same = rules.IOFile(ours, rule=rule()), make(theirs, rule=rule())
        for one, other in ((ours, theirs), (again, same)):
            assert (
                type(one) is type(other)
                and str(one) == str(other)
                and one == other
                and hash(one) == hash(other)
            )
            assert one.flags == other.flags and one.is_ancient == other.is_ancient
            assert str(one.file) == str(other.file) and one.apply_wildcards(VALUES) == other.apply_wildcards(
                VALUES
            )
        assert ours.rule is owner and again.rule is not owner
        if marked is not path:
            again.flags["more"] = same.flags["more"] = True
            assert ours.flags == theirs.flags and marked.flags == ours.flags, "flags are shared, as they were"
            del marked.flags["more"]
    assert rules.IOFile(lambda wildcards: "a", rule=owner).is_callable()


@pytest.mark.parametrize("flag", ["ancient", "temp", "storage_object"])
def test_flags_are_those_that_were_set(flag: str) -> None:
    plainly = original(io, "is_flagged")
    assert all(module.is_flagged is io.is_flagged for module in OF_FLAGS)
    owner = rule()
    marked = io.flag("a/b", "ancient")
    unset = io.flag("a/b", "ancient", False)
    files = [io.IOFile(path, rule=owner) for path in ("a/b", marked, unset)]
    nested = [io.IOFile(io.IOFile(file, rule=owner), rule=owner) for file in files]
    for value in ("a/b", marked, unset, *files, *nested, len, None, 3):
        assert io.is_flagged(value, flag) is plainly(value, flag), value
    assert io.is_flagged(nested[1], "ancient") and not io.is_flagged(nested[2], "ancient")
    for file in (*files, *nested):
        assert file.is_storage is original(io._IOFile, "is_storage")(file)
    kept = SimpleNamespace(_iofile=None)
    stored = io.IOFile(io.flag("a/b", "storage_object", kept), rule=owner)
    assert (
        stored.is_storage
        and io.IOFile(stored, rule=owner).is_storage
        and io.is_flagged(stored, "storage_object")
    )


def test_a_wildcard_without_value_is_named() -> None:
    file = io.IOFile("data/{method}.{key}", rule=rule())
    with pytest.raises(WildcardError) as ours:
        file.apply_wildcards({"method": "uce"})
    with pytest.raises(WildcardError) as theirs:
        original(io._IOFile, "apply_wildcards")(file, {"method": "uce"})
    assert str(ours.value) == str(theirs.value) and "key" in str(ours.value)


@pytest.mark.parametrize("path", [*PATHS, "", "a//b", "a/{bad name}.txt", "ok/file-1.txt"])
def test_warnings_of_odd_paths_are_given_as_before(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(io.logger, "warning", said.append)
    file = io.IOFile(path, rule=rule())
    file.check()
    ours = list(said)
    said.clear()
    original(io._IOFile, "check")(file)
    assert ours == said


def test_wildcards_are_the_objects_they_were() -> None:
    def plainly(values: dict[str, Any]) -> Any:
        made = iocontainers.Wildcards.__new__(iocontainers.Wildcards)
        iocontainers.Namedlist.__init__(made, fromdict=values)
        return made

    for values in (VALUES, {"index": "a", "method": "b"}, {"sort": "x"}, {}):
        for _ in range(2):  # the second time names are known
            ours, theirs = iocontainers.Wildcards(fromdict=values), plainly(values)
            assert list(ours) == list(theirs) and ours == theirs and hash(ours) == hash(theirs)
            assert list(ours.items()) == list(theirs.items()) and ours._names == theirs._names
            assert vars(ours).keys() == vars(theirs).keys() and str(ours) == str(theirs)
            assert ours.get("index") == theirs.get("index") and ours.get("method", 1) == theirs.get(
                "method", 1
            )
    with pytest.raises(AttributeError, match="cannot be used"):
        iocontainers.Wildcards(fromdict=VALUES).sort()
    with pytest.raises(AttributeError, match="reserved"):
        iocontainers.Wildcards(fromdict={"items": "a"})
    again = copy.deepcopy(iocontainers.Wildcards(fromdict=VALUES))
    assert list(again.items()) == list(VALUES.items())
    assert list(iocontainers.Wildcards(toclone=again).items()) == list(VALUES.items())


def test_folders_are_apart_only_where_no_path_lies_in_another() -> None:
    assert graph.apart(["a/b", "a/c", "d"])
    for odd in (["a/b", "a/b/c"], ["a", "a/b/c/d"], ["a/../b"], ["./a"], ["/a"], ["a//b"], ["a/"], [""]):
        assert not graph.apart(odd)
    chance = random.Random(0)
    for _ in range(300):
        paths = ["/".join(chance.choices("abc", k=chance.randint(1, 4))) for _ in range(chance.randint(1, 6))]
        inside = any(one != other and one.startswith(other + "/") for one in paths for other in paths)
        assert graph.apart(paths) is not inside


def test_parameters_are_those_that_inspection_finds() -> None:
    def wants(wildcards: str, attempt: int) -> int:
        return attempt

    inspected = dict(common.get_function_params(wants))
    assert dict(common.get_function_params(snake_haste.declared(wants))) == inspected
    assert getattr(wants, common.FUNC_OVERWRITE_PARAMS_ATTR) == inspected
    resource = resources.Resource("mem_mb", wants)
    own = list(common.get_function_params(resource.evaluate))
    assert own == ["args", "kwargs"]
    assert resource.evaluate("w", attempt=3, input=[]).value == 3


def test_an_unknown_snakemake_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import snakemake

    from palimpsest import snake_haste

    changed: list[str] = []
    for part in ("resources", "jobs", "graph", "files"):
        monkeypatch.setattr(getattr(snake_haste, part), "hasten", lambda part=part: changed.append(part))
    monkeypatch.setattr(snake_haste, "_collect_nothing", lambda: None)
    monkeypatch.setattr(snakemake, "__version__", "9.99.0")
    snake_haste.hasten()
    assert changed == []
    monkeypatch.setattr(snakemake, "__version__", "9.27.4")
    snake_haste.hasten()
    assert changed == ["resources", "jobs", "graph", "files"]
