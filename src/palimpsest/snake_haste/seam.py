"""How a method of Snakemake gets another in its place, and how a function says which parameters it takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
# Where Snakemake looks for the parameters of a function before it inspects it (snakemake.common.get_function_params).
PARAMETERS = "_overwrite_params"
HASTENED = "_hastened"


def declared(function: Function) -> Function:
    """The function with its parameters written down: for each job Snakemake asks several times which values it wants."""
    setattr(function, PARAMETERS, inspect.signature(function).parameters)
    return function


def replace(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put what `make` makes of a function, method or property in its place; once, and only where the owner has one of that name."""
    there = inspect.getattr_static(owner, name, None)
    function = there.fget if isinstance(there, property) else there
    if not inspect.isfunction(function) or hasattr(function, HASTENED):
        return
    made = functools.wraps(function)(make(function))
    setattr(made, HASTENED, True)
    setattr(owner, name, property(made) if isinstance(there, property) else made)
