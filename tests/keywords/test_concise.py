"""Concise sets: the rule gives the paper's sets from the paper's Table 8, and bad matrices say what is
wrong."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.keywords.concise import (
    BadMatrix,
    Matrix,
    concise_sets,
    coverage,
    main_table,
    read_matrices,
    read_matrix,
    relations,
    write_matrices,
)  # fmt: skip

TABLE8 = Path(__file__).parents[2] / "data/reference/suppression_table8.csv"
PAPER = {"nudity": ["nudity"], "violence": ["violence", "blood"], "horror": ["horror", "human flesh"]}


@pytest.mark.parametrize("threshold", [38.9, 45.0, 50.0, 60.0, 70.0])
def test_table_8_gives_the_papers_sets(threshold: float) -> None:
    matrices = read_matrices(TABLE8)
    assert {theme: concise_sets(matrix, threshold) for theme, matrix in matrices.items()} == PAPER


def test_the_stated_range_of_thresholds_is_the_whole_one() -> None:
    matrices = read_matrices(TABLE8)
    for outside in (38.89, 70.01):
        assert {theme: concise_sets(matrix, outside) for theme, matrix in matrices.items()} != PAPER


def test_relations_of_nudity_are_the_papers_chain() -> None:
    pairs = relations(read_matrices(TABLE8)["nudity"])
    chain = ["nudity", "sex", "genitalia", "seductive"]
    assert set(pairs) == {(a, ">", b) for a, b in combinations(chain, 2)}


def test_a_set_can_be_asked_for_no_more_than_the_keyword_itself() -> None:
    assert concise_sets(Matrix(("a", "b"), ((90, 30), (0, 30)))) == ["a"]
    assert concise_sets(Matrix(("a", "b"), ((90, 29), (0, 30)))) == ["a", "b"]


def test_ties_go_to_the_larger_suppression_then_to_the_order() -> None:
    assert concise_sets(Matrix(("a", "b"), ((80, 60), (80, 90)))) == ["b"]
    assert concise_sets(Matrix(("a", "b"), ((80, 80), (80, 80)))) == ["a"]


def test_keywords_that_were_never_drawn_need_no_cover() -> None:
    blank = Matrix(("a", "b", "c"), ((90, math.nan, 10), (0, math.nan, 0), (0, math.nan, -5)))
    assert concise_sets(blank) == ["a"]
    assert coverage(blank) == {"a": {"a"}, "b": set(), "c": set()}
    assert concise_sets(Matrix(("a", "b"), ((-10, 0), (-10, -20)))) == ["a"]


def test_a_theme_that_is_never_drawn_keeps_its_theme_word() -> None:
    assert concise_sets(Matrix(("a", "b"), ((math.nan, math.nan), (math.nan, math.nan)))) == ["a"]


def test_equivalent_keywords() -> None:
    assert relations(Matrix(("a", "b"), ((90, 80), (75, 90)))) == [("a", "≈", "b")]
    assert relations(Matrix(("a", "b"), ((90, 60), (80, 90)))) == [("b", ">", "a")]
    assert relations(Matrix(("a", "b"), ((90, 0), (0, 90)))) == []


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 5).flatmap(
        lambda n: st.lists(st.lists(st.integers(-20, 100), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_the_set_covers_and_no_smaller_one_does(rows: list[list[int]]) -> None:
    names = tuple("abcde"[: len(rows)])
    matrix = Matrix(names, tuple(tuple(float(value) for value in row) for row in rows))
    chosen, covered = concise_sets(matrix), coverage(matrix)
    wanted = set().union(*covered.values())
    assert chosen
    assert set().union(*(covered[name] for name in chosen)) == wanted
    for size in range(1, len(chosen)):
        for smaller in combinations(names, size):
            assert not set().union(*(covered[name] for name in smaller)) >= wanted


def test_thirty_unrelated_keywords_take_no_time() -> None:
    names = tuple(f"k{i}" for i in range(30))
    assert concise_sets(
        Matrix(names, tuple(tuple(90.0 * (i == j) for j in range(30)) for i in range(30)))
    ) == list(names)


def test_files_round_trip(tmp_path: Path) -> None:
    matrices = read_matrices(TABLE8)
    write_matrices(matrices, tmp_path / "m.csv")
    assert read_matrices(tmp_path / "m.csv") == matrices
    assert (tmp_path / "m.csv").read_text() == TABLE8.read_text()


def test_one_matrix_without_theme_and_with_percent_signs(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("erased,b,a\na,60%,90 %\nb,95,\n", encoding="utf-8-sig")
    with pytest.raises(BadMatrix, match="'a' have no value for erased"):
        read_matrix(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("erased,b,a\na,60%,90 %\nb,95,10\n", encoding="utf-8-sig")
    matrix = read_matrix(tmp_path / "m.csv")
    assert matrix == Matrix(("a", "b"), ((90, 60), (10, 95)))
    assert concise_sets(matrix) == ["a"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "found 0 line"),
        ("erased,a,b\na,90,10\n", r"columns \['b'\] have no row"),
        ("erased,a\na,90\nb,10\n", r"erased keywords \['b'\] have no column"),
        ("erased,a,b\na,90\nb,10,20\n", "line 2: 2 cells where the header has 3"),
        ("erased,a,b\na,90,x\nb,10,20\n", "line 2: 'x' .*prompts about 'b'.* is no number"),
        ("erased,a\na,90\na,80\n", "'a' is given twice"),
        ("erased,a\na,120\n", "above 100 percent"),
        ("erased,a,b\na,0.9,0.1\nb,0.5,1\n", "look like fractions"),
        ("erased,a\na,\n", "every value is blank"),
    ],
)
def test_bad_matrices(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(BadMatrix, match=why) as caught:
        read_matrix(path)
    assert str(path) in str(caught.value)


def test_other_errors(tmp_path: Path) -> None:
    with pytest.raises(BadMatrix, match="no such file"):
        read_matrices(tmp_path / "none.csv")
    (tmp_path / "m.csv").write_bytes(b"erased,\xe9\n")
    with pytest.raises(BadMatrix, match="not readable as UTF-8"):
        read_matrices(tmp_path / "m.csv")
    with pytest.raises(BadMatrix, match="read_matrices reads them all"):
        read_matrix(TABLE8)
    with pytest.raises(ValueError, match="0 to 100"):
        concise_sets(Matrix(("a",), ((90,),)), threshold=101)


def test_the_printed_table() -> None:
    text = main_table(TABLE8)
    assert "violence: {violence, blood}" in text
    assert "horror: {horror, human flesh}" in text
    assert "exposed bone: covered by horror (44.44 % of at least 44.44 %)" in text
    assert "nudity > sex" in text
