"""Resources of jobs: memory, time, threads. Each is worked out per job, with an object of all its wildcards."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from palimpsest.snake_haste.seam import PARAMETERS, declared, replace


def hasten() -> None:
    know_parameters()
    _take_plain_ones()
    _free_none_of_dry_runs()


def know_parameters() -> None:
    """The parameters of a resource's evaluation, which four resources of each job ask for twice."""
    from snakemake import resources

    evaluate = getattr(getattr(resources, "Resource", None), "evaluate", None)
    if evaluate is not None and not hasattr(evaluate, PARAMETERS):
        # as they are for the bound method: without the first
        own = dict(list(inspect.signature(evaluate).parameters.items())[1:])
        setattr(evaluate, PARAMETERS, own)


def _take_plain_ones() -> None:
    """A resource that is a number needs no evaluation, for which Snakemake first makes an object of all wildcards; and one that is an
    expression of a profile is inspected once, not for every job."""
    from snakemake import resources, rules

    kind: Any = getattr(resources, "Resource", None)
    if not hasattr(kind, "is_evaluable"):
        return

    def make(apply: Callable[..., Any]) -> Callable[..., Any]:
        def plain(self: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
            resource: Any = getattr(func, "__self__", None)
            if type(resource) is kind and func.__name__ == "evaluate":
                if not resource.is_evaluable():
                    return resource, False
                evaluator = getattr(resource, "_evaluator", None)
                if inspect.isfunction(evaluator) and not hasattr(evaluator, PARAMETERS):
                    with suppress(ValueError):
                        declared(evaluator)
            return apply(self, func, *args, **kwargs)

        return plain

    replace(getattr(rules, "Rule", None), "apply_input_function", make)


def _free_none_of_dry_runs() -> None:
    """A dry run takes no resources, so it need not give any back, for which those of every job are worked out. They still are for one
    job of every rule, so that what cannot be worked out is found."""
    try:
        from snakemake.scheduling import job_scheduler
    except ImportError:
        return

    def make(free: Callable[..., Any]) -> Callable[..., Any]:
        def none(self: Any, job: Any) -> None:
            if self.workflow.dryrun:
                freed = self.__dict__.setdefault("freed_rules", set())
                rules = tuple(job.rules)
                if rules in freed:
                    return
                freed.add(rules)
            free(self, job)

        return none

    replace(getattr(job_scheduler, "JobScheduler", None), "_free_resources", make)
