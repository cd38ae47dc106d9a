"""Files of jobs: ten objects of them per job, each with flags that are asked for many times and wildcards that are filled in."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from palimpsest.snake_haste.seam import replace

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
    replace(file, "is_storage", lambda ask: _is_storage(ask, text))
    replace(file, "check", lambda check: _checked(check, text))
    if fill is not None and isinstance(places, re.Pattern):
        replace(file, "apply_wildcards", lambda apply: _filled(apply, file, text, _filler(fill, places)))


def _is_storage(ask: Callable[..., Any], text: Any) -> Callable[..., Any]:
    """Whether a file is kept in a remote storage: a flag, which is asked for fifty times per job."""

    def quick(self: Any) -> Any:
        known = self._file
        kind = type(known)
        if kind is text:
            return bool(known._flags.get("storage_object"))
        return False if kind is str else ask(self)

    return quick


def _checked(check: Callable[..., Any], text: Any) -> Callable[..., Any]:
    """Warnings of odd paths: there are none for a path of letters, digits and single slashes."""

    def quick(self: Any) -> None:
        known = self._file
        if not (type(known) in (str, text) and PLAIN.fullmatch(known)):
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
