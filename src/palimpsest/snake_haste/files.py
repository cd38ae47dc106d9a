"""Files of jobs: ten objects of them per job, each with flags that are asked for many times and wildcards that are filled in."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from palimpsest.snake_haste.seam import HASTENED, replace

# Snakemake warns of other paths, or reads them in a way of its own.
PLAIN = re.compile(r"(?!\./)[\w.+=@-]+(?:/[\w.+=@-]+)*")
SLOTS = ("_is_callable", "_file", "rule", "_regex", "_wildcard_constraints")


def hasten() -> None:
    from snakemake import io

    file: Any = getattr(io, "_IOFile", None)
    text: Any = getattr(io, "AnnotatedString", None)
    fill: Any = getattr(io, "apply_wildcards", None)
    places: Any = getattr(io, "WILDCARD_REGEX", None)
    if (
        tuple(getattr(file, "__slots__", ())) != SLOTS
        or text is None
        or vars(text("a")).keys() != {"_flags", "callable"}
    ):
        return  # not the files that are known here
    flagged = getattr(io, "is_flagged", None)
    if inspect.isfunction(flagged):
        _replace_everywhere(flagged, _flagged(flagged, file, text))
    replace(file, "is_storage", lambda ask: _is_storage(ask, file, text))
    replace(file, "check", lambda check: _checked(check, file, text))
    from snakemake import rules

    replace(rules, "IOFile", lambda make: _made(make, file, text))
    if fill is not None and isinstance(places, re.Pattern):
        replace(file, "apply_wildcards", lambda apply: _filled(apply, file, text, _filler(fill, places)))


def _replace_everywhere(function: Callable[..., Any], quick: Callable[..., Any]) -> None:
    """Modules of Snakemake took the function over by name."""
    if hasattr(function, HASTENED):
        return
    quick = functools.wraps(function)(quick)
    setattr(quick, HASTENED, True)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "snakemake" and vars(module).get(function.__name__) is function:
            setattr(module, function.__name__, quick)


def _flagged(ask: Callable[..., Any], file: Any, text: Any) -> Callable[..., Any]:
    """Whether a path has a flag: asked for a hundred times per job, and of an abstract class, which takes longer than to look."""

    def quick(value: Any, flag: str) -> Any:
        kind, known = type(value), value
        while kind is file:  # a file of a file has the flags of that
            known = known._file
            kind = type(known)
        if kind is text:
            return bool(known._flags.get(flag))
        return False if kind is str else ask(value, flag)

    return quick


def _made(make: Callable[..., Any], file: Any, text: Any) -> Callable[..., Any]:
    """A file of a path with flags, or of a file: one for a plain path, with the flags of that, and not a file of a file."""

    def quick(path: Any, rule: Any = None) -> Any:
        known = path._file if type(path) is file and not path._is_callable else path
        if type(known) is not text or known.callable or known._flags.get("storage_object"):
            return make(path, rule=rule)
        if not PLAIN.fullmatch(known):
            return make(path, rule=rule)
        if known is path:
            known = text(str(path))
            known.flags = path.flags
        made = str.__new__(file, known)
        made._is_callable, made._file, made.rule = False, known, rule
        made._regex = made._wildcard_constraints = None
        return made

    return quick


def _is_storage(ask: Callable[..., Any], file: Any, text: Any) -> Callable[..., Any]:
    """Whether a file is kept in a remote storage: the flag that is asked for most."""

    def quick(self: Any) -> Any:
        known = self._file
        kind = type(known)
        while kind is file:
            known = known._file
            kind = type(known)
        if kind is text:
            return bool(known._flags.get("storage_object"))
        return False if kind is str else ask(self)

    return quick


def _checked(check: Callable[..., Any], file: Any, text: Any) -> Callable[..., Any]:
    """Warnings of odd paths: there are none for a path of letters, digits and single slashes."""

    def quick(self: Any) -> None:
        known = self._file
        if not (type(known) in (str, text, file) and PLAIN.fullmatch(known)):
            check(self)

    return quick


def _filler(fill: Callable[..., Any], places: re.Pattern[str]) -> Callable[[str, Any], str]:
    """The function that fills wildcards in, with every pattern taken apart once."""

    @lru_cache(maxsize=1024)
    def parts(pattern: str) -> tuple[list[str], list[str], str]:
        """What stands before each wildcard, their names, what stands after the last."""
        before, names, last = [], [], 0
        for found in places.finditer(pattern):
            before.append(pattern[last : found.start()])
            names.append(found.group("name"))
            last = found.end()
        return before, names, pattern[last:]

    def filled(pattern: str, wildcards: Any) -> str:
        if "{" not in pattern:
            return pattern
        before, names, after = parts(pattern)
        try:
            return "".join([a + str(wildcards[name]) for a, name in zip(before, names, strict=True)]) + after
        except KeyError:
            return str(fill(pattern, wildcards))  # says what is missing

    return filled


def _filled(
    apply: Callable[..., Any], file: Any, text: Any, fill: Callable[[str, Any], str]
) -> Callable[..., Any]:
    """A file with its wildcards filled in. A plain path needs nothing of what else makes a file of a text."""

    def quick(self: Any, wildcards: Any) -> Any:
        known = self._file
        if self._is_callable or type(known) not in (str, text) or self.is_storage:
            return apply(self, wildcards)
        path = fill(str(known), wildcards)
        if not PLAIN.fullmatch(path):
            return apply(self, wildcards)
        made = str.__new__(file, path)
        made._is_callable = False
        made._file = text(path)
        made._file.flags = dict(known.flags) if type(known) is text else {}
        made.rule = self.rule
        made._regex = made._wildcard_constraints = None
        return made

    return quick
