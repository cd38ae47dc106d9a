"""Jobs: what is asked of each of them although its rule answers for all, and the objects of wildcards that many questions take."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from logging.handlers import QueueHandler
from typing import Any

from palimpsest.snake_haste.seam import replace

# The logger of the default profile, which shows the counts of a dry run but not its jobs; later ones may.
QUIET_LOGGER, QUIET_VERSION = "snakemake-logger-plugin-rich", "0.5."


def hasten() -> None:
    _look_for_scripts_once()
    _ask_for_no_environment()
    _describe_none_unseen()
    _work_logs_out_once()
    _make_wildcards_of_dicts()


def _look_for_scripts_once() -> None:
    """Whether a rule's script can be read, which for a path without wildcards does not depend on the job."""
    from snakemake import dag

    def make(look: Callable[..., Any]) -> Callable[..., Any]:
        def once(self: Any, job: Any) -> None:
            script = job.rule.script
            if isinstance(script, str) and "{" not in script:
                known = self.__dict__.setdefault("known_scripts", set())
                if (script, job.rule.basedir) in known:
                    return
                known.add((script, job.rule.basedir))
            look(self, job)

        return once

    replace(getattr(dag, "ScriptProcessor", None), "process_job", make)


def _ask_for_no_environment() -> None:
    """Which conda environment a job wants, where its rule has none: Snakemake works out all parameters of a job to ask this, which for
    most jobs nothing else needs before they run."""
    from snakemake import jobs

    def make(ask: Callable[..., Any]) -> Callable[..., Any]:
        def without(self: Any) -> Any:
            if getattr(self.rule, "_conda_env", self) is None:
                return None
            return ask(self)

        return without

    replace(getattr(jobs, "Job", None), "conda_env_spec", make)


def _describe_none_unseen() -> None:
    """What a dry run would say of a job where it is not shown: files, reason, every resource. `--quiet all` and `--quiet rules` keep it
    from being shown, and so does the logger of the default profile unless `--verbose` is given."""
    from snakemake import jobs
    from snakemake.settings import enums

    kinds: Any = getattr(enums, "Quietness", None)
    if kinds is None:
        return
    unseen = {kinds.ALL, kinds.RULES}

    def make(describe: Callable[..., Any]) -> Callable[..., Any]:
        def shown(self: Any, *args: Any, **kwargs: Any) -> None:
            workflow = self.dag.workflow
            settings = workflow.output_settings
            if settings.dryrun:
                if unseen & set(settings.quiet or ()):
                    return
                told = self.rule.is_checkpoint or self.rule.is_handover
                if not told and only_progress_is_shown(getattr(workflow, "logger_manager", None)):
                    return
            describe(self, *args, **kwargs)

        return shown

    replace(getattr(jobs, "Job", None), "log_info", make)


@lru_cache(maxsize=4)
def only_progress_is_shown(manager: Any) -> bool:
    """Whether nothing of a dry run's jobs is written anywhere: all goes to one logger, of which it is known that it leaves them out."""
    plugins = list(getattr(manager, "plugin_handlers", ()))
    handlers = list(getattr(getattr(manager, "logger", None), "handlers", ()))
    if len(plugins) != 1 or not handlers or not all(isinstance(h, QueueHandler) for h in handlers):
        return False
    events = getattr(plugins[0], "event_handler", None)
    if type(events).__module__.partition(".")[0] != QUIET_LOGGER.replace("-", "_"):
        return False
    quiet = getattr(events, "dryrun", False) and not getattr(events, "verbose", True)
    return bool(quiet) and version(QUIET_LOGGER).startswith(QUIET_VERSION)


def _work_logs_out_once() -> None:
    """Where the log of a job goes: asked for the index of its files, then once more to see whether the job can be made."""
    from snakemake import jobs

    kind: Any = getattr(jobs, "Job", None)
    if not isinstance(getattr(kind, "log", None), property):
        return

    def make(_: Callable[..., Any]) -> Callable[..., Any]:
        def valid(self: Any) -> None:
            self.rule.expand_benchmark(self.wildcards_dict)
            _ = self.log  # kept by the job

        return valid

    replace(kind, "is_valid", make)


def _make_wildcards_of_dicts() -> None:
    """Every function of a rule gets its job's wildcards as an object of its own, put together name by name."""
    from snakemake import iocontainers

    kind: Any = getattr(iocontainers, "Wildcards", None)
    guard: Any = getattr(iocontainers, "AttributeGuard", None)
    base: Any = getattr(iocontainers, "Namedlist", None)
    if kind is None or guard is None or base is None or "__init__" in vars(kind):
        return
    probe = kind(fromdict={"name": "value"})
    if vars(probe).keys() != {"_names", "_allowed_overrides", "index", "sort", "name"}:
        return
    guards = {name: guard(name) for name in probe._allowed_overrides}
    usual: set[str] = set()

    def whole(self: Any, toclone: Any = None, fromdict: Any = None, **others: Any) -> None:
        if toclone is not None or not fromdict or others:
            base.__init__(self, toclone, fromdict, **others)
        elif not usual.issuperset(fromdict):
            base.__init__(self, fromdict=fromdict)  # objects to a name that means something else
            usual.update(fromdict.keys() - guards)
        else:
            list.__init__(self, fromdict.values())
            names = {name: (place, None) for place, name in enumerate(fromdict)}
            vars(self).update(guards, _names=names, _allowed_overrides=list(guards), **fromdict)

    kind.__init__ = whole
