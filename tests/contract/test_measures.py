"""Every measure of pictures gives metrics that are declared, and loads nothing heavy until it is asked to."""

from __future__ import annotations

import subprocess
import sys

import pytest

from palimpsest.metrics import contract, measuring

METRICS = contract.declared()


def settings(kind: str) -> object:
    model = measuring.find(kind).Settings
    return model.model_validate({"path": "somewhere"})


@pytest.mark.parametrize("kind", measuring.names())
def test_what_a_measure_gives_is_declared(kind: str) -> None:
    module, spec = measuring.find(kind), settings(kind)
    given = list(module.gives(spec))
    for fid, kid in module.feature_sets(spec).values():
        given += [f"fid_{fid}", f"fid_base_{fid}"] + ([f"kid_{kid}", f"kid_base_{kid}"] if kid else [])
    assert given
    assert not set(given) - set(METRICS)
    assert module.needs(spec) <= {"base", "real"}
    assert all(hasattr(spec, name) for name in module.FILES)
    for name in module.gives(spec):
        wanted = {"image pairs": "base", "image and real picture": "real"}.get(METRICS[name].needs)
        assert wanted is None or wanted in module.needs(spec)


@pytest.mark.parametrize("kind", measuring.names())
def test_unknown_settings_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="colour"):
        measuring.find(kind).Settings.model_validate({"path": "somewhere", "colour": "red"})


def test_finding_a_measure_loads_no_torch() -> None:
    code = (
        "import sys; from palimpsest.metrics import measuring\n"
        "[measuring.find(name) for name in measuring.names()]\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_measure_names_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"'fidd' does not exist; allowed: \['clip_score', .*'micro'\]"):
        measuring.find("fidd")
