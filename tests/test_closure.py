from __future__ import annotations

import ast

import pytest

from palimpsest import closure


def text(source: str) -> str:
    return closure.flat(ast.parse(source))


def test_comments_docstrings_and_layout_do_not_count():
    plain = "def f(a):\n    return a + 1\n"
    dressed = '"""Module."""\n\n# why\ndef f(\n    a,\n):\n    """Doc."""\n    return (a + 1)  # here\n'
    assert text(plain) == text(dressed)


@pytest.mark.parametrize(
    "other",
    ["def f(a):\n    return a + 2\n", "def f(b):\n    return b + 1\n", "def f(a):\n    return a - 1\n"],
)
def test_a_change_of_meaning_counts(other):
    assert text("def f(a):\n    return a + 1\n") != text(other)


def test_a_string_that_is_no_docstring_counts():
    assert text("x = 'a'\n") != text("x = 'b'\n")


def test_the_closure_of_a_method_holds_its_helpers_and_no_other_method():
    found = closure.reachable("palimpsest.methods.uce")
    assert {"palimpsest", "palimpsest.methods", "palimpsest.methods.contract"} <= found
    assert (
        not {
            "palimpsest.methods.esd",
            "palimpsest.methods.registry",
            "palimpsest.plan.build",
            "palimpsest.snake",
        }
        & found
    )


def test_names_used_for_types_only_are_not_in_the_closure():
    assert "palimpsest.sampling.pipeline" not in closure.reachable("palimpsest.methods.contract")


def test_modules_loaded_behind_the_graphs_back_are_named():
    assert closure.unexpected(
        closure.modules(["palimpsest.store"]), ["palimpsest.store", "palimpsest.plan.build", "numpy"]
    ) == ["palimpsest.plan.build"]


def test_an_unknown_root_is_an_error():
    with pytest.raises(ValueError, match="palimpsest.nowhere"):
        closure.digest(["palimpsest.nowhere"])


def test_a_third_partys_module_counts_by_its_files(tmp_path, monkeypatch):
    (tmp_path / "outside.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = closure.digest(["outside"], fresh=True)
    (tmp_path / "outside.py").write_text("x = 2\n")
    assert closure.digest(["outside"], fresh=True) != before


def test_a_third_partys_imports_of_ours_are_reachable(tmp_path, monkeypatch):
    (tmp_path / "borrower.py").write_text("from palimpsest.methods import uce\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert closure.unexpected(
        closure.modules(["borrower"]), ["palimpsest.methods.uce", "palimpsest.plan.build"]
    ) == ["palimpsest.plan.build"]
