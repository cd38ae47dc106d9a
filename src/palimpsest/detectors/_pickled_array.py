"""The numbers of an array that somebody pickled, read without unpickling: opcodes are parsed, nothing that the file names is called.

Arrays as NumPy pickles them in protocols 1 to 4 are understood; a file with anything else in it is refused.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = frozenset({"BININT", "BININT1", "BININT2", "INT", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"}) | {
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINSTRING",
    "SHORT_BINSTRING",
}
KEEP = frozenset({"MEMOIZE", "BINPUT", "LONG_BINPUT"})
RECALL = frozenset({"BINGET", "LONG_BINGET"})
# What the names in an array's pickle stand for here.
EMPTY, ARRAY, DTYPE, ENCODE = "an empty array", "the type array", "the type dtype", "bytes"
NAMES = {
    "numpy.core.multiarray _reconstruct": EMPTY,
    "numpy._core.multiarray _reconstruct": EMPTY,
    "numpy ndarray": ARRAY,
    "numpy dtype": DTYPE,
    "_codecs encode": ENCODE,
}
MARK = object()


def read_array(path: str | Path) -> np.ndarray:
    """The one array in a pickle. Raises ValueError, naming what else stands in the file, for anything but an array of numbers."""
    import numpy as np

    data = Path(path).read_bytes()
    try:
        found = _Stack().run(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; nothing of it was run") from None
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no pickled array ({type(error).__name__}: {error})") from None
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{path}: holds {found!r}, not an array of numbers")
    return found


class _Stack:
    """What the opcodes have put together so far."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.kept: dict[Any, Any] = {}

    def run(self, data: bytes) -> Any:
        """The value of the whole file. Raises ValueError for an opcode or a name that no array needs."""
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name in VALUES:
                self.values.append(argument)
            elif name in CONSTANTS:
                self.values.append(CONSTANTS[name])
            elif name in KEEP:
                place = len(self.kept) if argument is None else argument
                self.kept[place] = self.values[-1]
            elif name in RECALL:
                self.values.append(self.kept[argument])
            elif name == "MARK":
                self.values.append(MARK)
            elif name == "TUPLE":
                self.tuple(len(self.values) - 1 - max(n for n, v in enumerate(self.values) if v is MARK))
                del self.values[-2]
            elif name in TUPLES:
                self.tuple(TUPLES[name])
            elif name in ("GLOBAL", "STACK_GLOBAL"):
                self.name(argument)
            elif name in ("REDUCE", "BUILD"):
                change = _reduced if name == "REDUCE" else _built
                last = self.values.pop()
                self.values.append(change(self.values.pop(), last))
            elif name not in ("PROTO", "FRAME", "STOP"):
                raise ValueError(f"holds the opcode {name}, which no array of numbers needs")
        return self.values.pop()

    def tuple(self, length: int) -> None:
        """Join the last values."""
        start = len(self.values) - length
        self.values[start:] = [tuple(self.values[start:])]

    def name(self, argument: str | None) -> None:
        """Push what a module's name stands for."""
        if argument is None:
            last = self.values.pop()
            argument = f"{self.values.pop()} {last}"
        if argument not in NAMES:
            raise ValueError(f"names {argument.replace(' ', '.')}, which no array of numbers needs")
        self.values.append(NAMES[argument])


def _reduced(called: Any, arguments: tuple[Any, ...]) -> Any:
    import numpy as np

    if called == ENCODE:
        text, encoding = arguments
        return text.encode({"latin1": "latin-1"}[encoding])
    if called == DTYPE:
        kind = np.dtype(str(arguments[0]))
        if kind.hasobject:
            raise ValueError("holds an array of objects")
        return kind
    if called == EMPTY:
        return EMPTY
    raise ValueError(f"calls {called!r}, which no array of numbers needs")


def _built(thing: Any, state: tuple[Any, ...]) -> Any:
    import numpy as np

    if isinstance(thing, np.dtype):
        return thing.newbyteorder(state[1]) if state[1] in ("<", ">") else thing
    if thing != EMPTY:
        raise ValueError(f"changes {thing!r}, which no array of numbers needs")
    _, shape, kind, by_columns, numbers = state
    # Python 2 wrote bytes as text
    raw = numbers.encode("latin-1") if isinstance(numbers, str) else numbers
    return np.frombuffer(raw, dtype=kind).reshape(shape, order="F" if by_columns else "C")
