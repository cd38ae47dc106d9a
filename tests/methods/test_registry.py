"""Finding methods and reading their settings files."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from palimpsest.methods import registry
from palimpsest.params import BadSettings

GOOD = "method: sld\ntitle: SLD\nrun: [a]\npresets:\n  a: {warmup: 3}\n  b: {}\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sld.yaml").write_text(GOOD)
    return tmp_path


def test_modules_with_info_are_methods_and_helpers_are_not():
    names = registry.names()
    assert {"sd", "sd_np", "sld"} <= set(names)
    assert not {"contract", "registry"} & set(names)
    assert not [name for name in names if name.startswith("_")]


def test_unknown_methods_get_a_hint():
    with pytest.raises(BadSettings, match=r"no method 'sdnp'\. Did you mean 'sd_np'\?.*Known methods: .*sld"):
        registry.get("sdnp")
    with pytest.raises(BadSettings, match="no method 'contract'"):
        registry.module_name("contract")


def test_one_method_is_imported_without_the_others():
    code = (
        "import sys; from palimpsest.methods import registry; registry.names(); registry.get('sld');"
        "loaded = [m for m in registry.names() if f'palimpsest.methods.{m}' in sys.modules];"
        "assert loaded == ['sld'], loaded; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_third_parties_come_through_entry_points(tmp_path, monkeypatch):
    (tmp_path / "their_package.py").write_text(
        "from palimpsest.methods.sd import INFO, Settings, apply, fit\n"
    )
    (tmp_path / "their_wrong.py").write_text("INFO = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint(name, f"their_{name}", registry.PACKAGE) for name in ("package", "wrong")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.PACKAGE else [])
    registry._modules.cache_clear()
    try:
        assert registry.module_name("package") == "their_package"
        assert registry.get("package").INFO.name == "sd"
        with pytest.raises(TypeError, match="their_wrong is no method: it lacks Settings, fit, apply"):
            registry.get("wrong")
    finally:
        registry._modules.cache_clear()


def test_settings_are_presets_with_overrides(folder):
    assert registry.settings("sld", "a", folder=folder).warmup == 3
    assert registry.settings("sld", "a", {"warmup": 4}, registry.settings_files(folder)).warmup == 4


def test_all_problems_of_all_files_come_at_once(folder):
    (folder / "bad.yaml").write_text(
        "method: sld\ntitle: Bad\nrun: [gone]\npresets:\n  a: {}\nsamplers:\n  a: {steps: 0, stepps: 3}\n"
    )
    (folder / "typo.yaml").write_text(
        "method: sld\ntitle: T\nrun: []\npresets:\n  a: {warmpu: 3}\n  b: {strength: -1}\n"
    )
    (folder / "odd.yaml").write_text("method: slt\ntitle: T\nrun: []\npresets: {a: {}}\nnote: x\n")
    (folder / "nobody.yaml").write_text("method: slt\ntitle: T\nrun: []\npresets: {a: {}}\n")
    (folder / "list.yaml").write_text("- a\n")
    with pytest.raises(BadSettings) as caught:
        registry.settings_files(folder)
    text = str(caught.value)
    for part in (
        "'gone' is no preset",
        "samplers.a: steps",
        "did you mean 'steps'?",
        "typo.yaml: presets.a: warmpu: unknown key; did you mean 'warmup'?",
        "typo.yaml: presets.b: strength",
        "odd.yaml: note: unknown key",
        "no method 'slt'. Did you mean 'sld'?",
        "list.yaml: expected a mapping",
    ):
        assert part in text
    assert text.startswith("6 problem(s)")


def test_unknown_presets_and_overrides_are_named(folder):
    with pytest.raises(BadSettings, match=r"methods\.sld: no preset 'c'.*allowed: \['a', 'b'\]"):
        registry.settings("sld", "c", folder=folder)
    with pytest.raises(
        BadSettings, match=r"overrides\.sld on preset a: strenght: unknown key; did you mean 'strength'"
    ):
        registry.settings("sld", "a", {"strenght": 2}, folder=folder)
    with pytest.raises(BadSettings, match="no method 'sdl'"):
        registry.settings("sdl", "a", folder=folder)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(BadSettings, match="no settings files"):
        registry.settings_files(tmp_path)
