"""A second tree of modules around the same tensors.

`copy.deepcopy` does it too and takes several times as long, since it looks into everything that any module holds, most of which are empty
dictionaries of hooks. Every call of the sampling loop takes such a copy, and many of them make few images.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType, MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NOTHING: Mapping[int, Any] = MappingProxyType({})
# Of an attribute of exactly these kinds the twin has its own, with the same content; anything else (a configuration is a kind of
# dictionary too) is shared.
OWN = frozenset({dict, OrderedDict, list, set})


def twin(module: Any, replaced: Mapping[int, Tensor] = NOTHING) -> Any:
    """The modules of `module` again: hooks hung into one, layouts and tensors set in one are not the other's.

    replaced: id of a parameter or buffer -> what the twin has in its place; all others are shared. What a module is computed from
    beside its tensors and modules (configuration, attention processors) is shared as well.
    """
    made: dict[int, Any] = {}
    again = _again(module, replaced, made)
    for (
        copy
    ) in made.values():  # methods that were put into a module, as tools for offloading do, are of that module
        for name, value in copy.__dict__.items():
            if isinstance(value, MethodType) and id(value.__self__) in made:
                copy.__dict__[name] = MethodType(value.__func__, made[id(value.__self__)])
    return again


def _again(module: Any, replaced: Mapping[int, Tensor], made: dict[int, Any]) -> Any:
    known = made.get(id(module))
    if known is not None:
        return known
    copy = object.__new__(type(module))
    made[id(module)] = copy
    own: dict[str, Any] = {
        name: value.copy() if type(value) in OWN else value for name, value in module.__dict__.items()
    }
    for tensors in (own["_parameters"], own["_buffers"]):
        for name, tensor in tensors.items():
            if id(tensor) in replaced:
                tensors[name] = replaced[id(tensor)]
    own["_modules"] = {
        name: child if child is None else _again(child, replaced, made)
        for name, child in module._modules.items()
    }
    copy.__dict__.update(own)
    return copy
