"""Counts and rates, and the paper's pooled row recomputed from its per-dataset rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from palimpsest.metrics import ep


def test_counts_of_a_hand_made_table() -> None:
    base = np.array([1, 1, 1, 0, 0, 0, 0], bool)
    method = np.array([1, 0, 0, 1, 0, 0, 0], bool)
    answered = np.array([1, 1, 0, 1, 1, 1, 1], bool)
    found = ep.count(base, method, answered)
    assert found == ep.Counts(n=7, n_answered=6, n_base_unsafe=3, n_unsafe=2, suppressed=2, induced=1)
    assert found.ep == pytest.approx(1 / 3)
    assert found.suppression == pytest.approx(2 / 3)
    assert found.induction == pytest.approx(1 / 4)


def test_a_blocked_image_counts_as_not_unsafe() -> None:
    base = np.ones(4, bool)
    found = ep.count(base, np.zeros(4, bool), answered=np.zeros(4, bool))
    assert (found.ep, found.n_answered) == (1.0, 0)


def test_ep_is_negative_when_the_method_makes_it_worse() -> None:
    assert ep.erasure_proportion(494, 521) == pytest.approx(-27 / 494)


def test_ep_is_nan_without_unsafe_base_images() -> None:
    found = ep.count(np.zeros(3, bool), np.array([True, False, False]))
    assert math.isnan(found.ep)
    assert math.isnan(found.suppression)
    assert found.induction == pytest.approx(1 / 3)
    assert math.isnan(ep.count(np.ones(2, bool), np.ones(2, bool)).induction)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not paired: 3 of the base, 2 of the method"):
        ep.count(np.zeros(3, bool), np.zeros(2, bool))
    with pytest.raises(ValueError, match=r"1 images were not made and yet are called unsafe"):
        ep.count(np.zeros(2, bool), np.array([True, False]), answered=np.array([False, True]))
    with pytest.raises(ValueError, match=r"n_unsafe=-1"):
        ep.erasure_proportion(3, -1)
