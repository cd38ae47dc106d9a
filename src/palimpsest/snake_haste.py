"""What Snakemake (9.27) works out anew for every job although the answer is the same for all jobs of a rule: asked once, a third or more of
the time to plan ten thousand jobs is saved (`benchmarks/plan.py --plain` measures without).

Nothing here changes an answer. What a later Snakemake no longer has is left alone, and planning then takes what it takes.
"""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
# Where Snakemake looks for the parameters of a function before it inspects it (snakemake.common.get_function_params).
PARAMETERS = "_overwrite_params"


def declared(function: Function) -> Function:
    """The function with its parameters written down: for each job Snakemake asks several times which values it wants."""
    setattr(function, PARAMETERS, inspect.signature(function).parameters)
    return function


def hasten() -> None:
    """Let Snakemake remember, in this process. To be called when a plan has been made and before jobs are."""
    _collect_less()
    _know_resources()
    _take_plain_resources()
    _look_for_scripts_once()
    _ask_for_no_environment()
    _describe_no_unseen_jobs()


def _collect_less() -> None:
    """Snakemake makes a hundred objects per job that live until the end: looking for garbage among them only takes time."""
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


def _know_resources() -> None:
    """The parameters of a resource's evaluation, which four resources of each job ask for twice."""
    from snakemake import resources

    evaluate = getattr(getattr(resources, "Resource", None), "evaluate", None)
    if evaluate is not None and not hasattr(evaluate, PARAMETERS):
        # as they are for the bound method: without the first
        own = dict(list(inspect.signature(evaluate).parameters.items())[1:])
        setattr(evaluate, PARAMETERS, own)


def _look_for_scripts_once() -> None:
    """Whether a rule's script can be read, which for a path without wildcards does not depend on the job."""
    from snakemake import dag

    processor: Any = getattr(dag, "ScriptProcessor", None)
    look = getattr(processor, "process_job", None)
    if look is None or hasattr(look, "__wrapped__"):
        return

    @functools.wraps(look)
    def once(self: Any, job: Any) -> None:
        script = job.rule.script
        if isinstance(script, str) and "{" not in script:
            known = self.__dict__.setdefault("known_scripts", set())
            if (script, job.rule.basedir) in known:
                return
            known.add((script, job.rule.basedir))
        look(self, job)

    processor.process_job = once


def _take_plain_resources() -> None:
    """A resource that is a number needs no evaluation, for which Snakemake first makes an object of all wildcards."""
    from snakemake import resources, rules

    apply: Any = getattr(getattr(rules, "Rule", None), "apply_input_function", None)
    kind: Any = getattr(resources, "Resource", None)
    if apply is None or not hasattr(kind, "is_evaluable") or hasattr(apply, "__wrapped__"):
        return

    @functools.wraps(apply)
    def plain(self: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        resource: Any = getattr(func, "__self__", None)
        if type(resource) is kind and func.__name__ == "evaluate" and not resource.is_evaluable():
            return resource, False
        return apply(self, func, *args, **kwargs)

    rules.Rule.apply_input_function = plain


def _ask_for_no_environment() -> None:
    """Which conda environment a job wants, where its rule has none: Snakemake works out all parameters of a job to ask this, which for
    most jobs nothing else needs before they run."""
    from snakemake import jobs

    asked: Any = getattr(getattr(jobs, "Job", None), "conda_env_spec", None)
    if not isinstance(asked, property) or hasattr(asked.fget, "__wrapped__") or asked.fget is None:
        return
    ask = asked.fget

    @functools.wraps(ask)
    def without(self: Any) -> Any:
        if getattr(self.rule, "_conda_env", self) is None:
            return None
        return ask(self)

    jobs.Job.conda_env_spec = property(without)


def _describe_no_unseen_jobs() -> None:
    """What a dry run would say of a job where `--quiet all` or `--quiet rules` keeps it from being shown: files, reason, every resource."""
    from snakemake import jobs
    from snakemake.settings import enums

    describe: Any = getattr(getattr(jobs, "Job", None), "log_info", None)
    kinds: Any = getattr(enums, "Quietness", None)
    if describe is None or kinds is None or hasattr(describe, "__wrapped__"):
        return
    unseen = {kinds.ALL, kinds.RULES}

    @functools.wraps(describe)
    def shown(self: Any, *args: Any, **kwargs: Any) -> None:
        settings = self.dag.workflow.output_settings
        if not (settings.dryrun and unseen & set(settings.quiet or ())):
            describe(self, *args, **kwargs)

    jobs.Job.log_info = shown
