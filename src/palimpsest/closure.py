"""Digests of the first-party code that a cell can reach, so that a cell is recomputed when that code changes and only then.

Comments, docstrings, layout and annotations-only imports do not count. The import graph is static (grimp); the job driver compares
it with what was really imported, so an import hidden from it fails the job instead of going unnoticed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

PACKAGE = "palimpsest"


def flat(tree: ast.AST) -> str:
    """The meaning-bearing text of a syntax tree: node types and non-empty fields, without docstrings and positions.

    `ast.dump` is not used because its text changes between Python versions; this text does not.
    """
    return "".join(_flat(tree))


def _flat(node: Any) -> Iterator[str]:
    if isinstance(node, ast.AST):
        yield type(node).__name__
        yield "("
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ):
                value = _without_docstring(value)
            if value is None or value == [] or name in ("type_comment", "kind", "type_ignores"):
                continue
            yield f"{name}="
            yield from _flat(value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for item in node:
            yield from _flat(item)
        yield "]"
    else:
        yield f"{node!r},"


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return body[1:]
    return body


@lru_cache(maxsize=1)
def _graph() -> Any:
    import grimp

    return grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)


@cache
def reachable(root: str) -> frozenset[str]:
    """All first-party modules that importing `root` can load, itself and parent packages included.

    Raises ValueError when there is no such module.
    """
    graph = _graph()
    if root not in graph.modules:
        raise ValueError(f"no module {root!r} in the package {PACKAGE}")
    found = {root, *graph.find_upstream_modules(root)}
    parents = {".".join(name.split(".")[:depth]) for name in found for depth in range(1, name.count(".") + 1)}
    return frozenset(found | parents)


def source_path(module: str) -> Path:
    """The file of a module. Raises ValueError when it has none."""
    package, _, tail = module.partition(".")
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ValueError(f"no package {package!r}")
    if not spec.submodule_search_locations:
        return Path(str(spec.origin))
    base = Path(next(iter(spec.submodule_search_locations))).joinpath(*tail.split(".")) if tail else None
    candidates = (
        [base.with_suffix(".py"), base / "__init__.py"]
        if base
        else [Path(spec.submodule_search_locations[0]) / "__init__.py"]
    )
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ValueError(f"module {module!r} has no source file")


def _read(module: str) -> bytes:
    return source_path(module).read_bytes()


_first_read = cache(_read)


def module_digest(module: str) -> str:
    """Digest of one module's code, read afresh from disk."""
    return _meaning(_read(module))


def _meaning(source: bytes) -> str:
    return hashlib.sha256(flat(ast.parse(source)).encode()).hexdigest()


@cache
def _cached_digest(module: str) -> str:
    return _meaning(_first_read(module))


def modules(roots: Iterable[str]) -> tuple[str, ...]:
    """Everything that counts for the roots, sorted: our modules they can load, then the files of a third party's package."""
    roots = list(roots)
    theirs = {m for root in roots if not is_ours(root) for m in _foreign(root)}
    return (*sorted(_ours(roots)), *sorted(theirs))


@cache
def tree() -> str:
    """Digest of all files of this package: names and bytes, which alone decide who imports whom."""
    base = Path(__file__).parent
    files = sorted(base.rglob("*.py"))
    return _short(
        f"{path.relative_to(base)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files
    )


def digest(roots: Iterable[str], fresh: bool = False) -> str:
    """Digest of everything reachable from the roots. fresh: read the files again instead of what this process saw first.

    A root outside this package (a third party's method) counts with all files of its top package and with what these import of ours.
    """
    of = module_digest if fresh else _cached_digest
    return _short(f"{name} {of(name)}" for name in modules(roots))


def bytes_digest(names: Iterable[str], fresh: bool = False) -> str:
    """Digest of the files of these modules as they are, comments and all: equal bytes are equal code, and need no parsing to know it."""
    read = _read if fresh else _first_read
    return _short(f"{name} {hashlib.sha256(read(name)).hexdigest()}" for name in names)


@cache
def stamp(roots: tuple[str, ...]) -> dict[str, Any]:
    """What a job must know to see whether the code is still that of its plan (palimpsest.job): the roots, the digest of what their code
    means, the modules that count, and the digest of their bytes."""
    names = modules(roots)
    return {
        "roots": list(roots),
        "code": digest(roots),
        "modules": list(names),
        "sources": bytes_digest(names),
    }


def _short(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _ours(roots: Iterable[str]) -> set[str]:
    """The first-party modules that the roots can load."""
    found: set[str] = set()
    for root in roots:
        starts = [root] if is_ours(root) else [m for their in _foreign(root) for m in _imports_of_ours(their)]
        found.update(*(reachable(start) for start in starts))
    return found


def _imports_of_ours(module: str) -> set[str]:
    """The first-party modules that a third party's module names in its imports."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(source_path(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in named if is_ours(name) and name in _graph().modules}


def is_ours(module: str) -> bool:
    """Whether a module belongs to this package."""
    return module == PACKAGE or module.startswith(PACKAGE + ".")


def _foreign(root: str) -> list[str]:
    """The modules of a third party's top package; a single-file package counts as that file."""
    package = root.partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ValueError(f"no module {root!r}")
    if not spec.submodule_search_locations:
        return [package]
    base = Path(next(iter(spec.submodule_search_locations)))
    names = [(package, *path.relative_to(base).with_suffix("").parts) for path in sorted(base.rglob("*.py"))]
    return [".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in names]


def unexpected(counted: Iterable[str], loaded: Iterable[str]) -> list[str]:
    """First-party modules that were loaded although they are not among those counted."""
    counted = set(counted)
    return sorted(m for m in loaded if is_ours(m) and m not in counted)
