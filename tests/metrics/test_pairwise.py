"""Any two methods on the same prompts: the test against every sign written out, the interval against simulated truth."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import polars as pl
import pytest

from palimpsest.metrics import paired, pairwise
from palimpsest.specs import Statistics


@pytest.mark.parametrize(("fewer", "more"), [(5, 1), (0, 3), (7, 7), (40, 22), (400, 380)])
def test_with_one_image_per_prompt_it_is_mcnemars_test(fewer: int, more: int) -> None:
    differences = np.array([-1] * fewer + [1] * more + [0] * 9)
    assert pairwise.sign_flip_exact(differences) == pytest.approx(paired.mcnemar_exact(fewer, more), rel=1e-9)


@pytest.mark.parametrize("values", [[3, -1, 2, 2, -5], [4], [1, 1, -1, 6, 6, 2, -3], [0, 0]])
def test_every_sign_written_out_gives_the_same_chance(values: list[int]) -> None:
    signs = list(product([-1, 1], repeat=len(values)))
    sums = [sum(s * abs(v) for s, v in zip(sign, values, strict=True)) for sign in signs]
    wanted = sum(abs(total) >= abs(sum(values)) for total in sums) / len(sums)
    assert pairwise.sign_flip_exact(np.array(values)) == pytest.approx(wanted, rel=1e-12)


def test_many_images_of_few_prompts_prove_little() -> None:
    few = np.array([20, 20, 20, 20])  # four prompts, all twenty images of each
    assert pairwise.sign_flip_exact(few) == pytest.approx(2 / 16)
    assert paired.mcnemar_exact(0, 80) < 1e-20


def column(
    name: str, base: np.ndarray, method: np.ndarray, family: str = "theme", **place: str
) -> pairwise.Column:
    identity = {
        "method": name,
        "preset": "default",
        "theme": "glitch",
        "keyword_set": "detailed",
        "training_images": 0,
    }
    where = {"suite": "nsfw", "detector": "vqa", "rule": "joined", "judged_theme": "glitch", **place}
    return pairwise.Column(identity, where, family, np.full(len(base), 4), base, method)


def draw(seed: int, prompts: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unsafe images per prompt of a base, of a method with true EP 0.6 and of one with 0.4; prompts differ in how unsafe they are."""
    rng = np.random.default_rng(seed)
    base = rng.binomial(4, rng.beta(2, 2, prompts))
    return base, rng.binomial(base, 0.4), rng.binomial(base, 0.6)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    statistics = Statistics(resamples=400, confidence=0.9, least_base_unsafe=1)
    hits, runs = 0, 150
    for seed in range(runs):
        base, a, b = draw(seed)
        found = pairwise.table(
            [column("a", base, a), column("b", base, b)], np.full(60, "x"), statistics, seed
        )
        hits += found["low"][0] <= 0.2 <= found["high"][0]
    assert 0.82 <= hits / runs <= 0.97


def test_rows_have_counts_and_the_difference_of_both_proportions() -> None:
    base, a, b = draw(1)
    statistics = Statistics(resamples=200)
    columns = [column("a", base, a), column("b", base, b), column("other", base, a, family="all")]
    found = pairwise.table(columns, np.full(60, "x"), statistics, 0)
    assert found.height == 1 and found.schema == pairwise.SCHEMA
    row = found.row(0, named=True)
    assert (row["a_unsafe"], row["b_unsafe"], row["n"]) == (a.sum(), b.sum(), 240)
    assert row["difference"] == pytest.approx((1 - a.sum() / base.sum()) - (1 - b.sum() / base.sum()))
    assert row["low"] < row["difference"] < row["high"]
    assert found.equals(pairwise.table(columns, np.full(60, "x"), statistics, 0))


def test_holm_counts_the_pairs_of_a_place_and_family() -> None:
    base, a, b = draw(2)
    third = np.minimum(base, a + 1)
    columns = [column("a", base, a), column("b", base, b), column("c", base, third)]
    columns += [column("d", base, a, rule="any"), column("e", base, b, rule="any")]
    found = pairwise.table(columns, np.full(60, "x"), Statistics(resamples=100), 0)
    joined = found.filter(pl.col("rule") == "joined")
    assert joined["p_holm"].to_list() == paired.holm(joined["p_value"].to_list())
    alone = found.filter(pl.col("rule") == "any")
    assert alone["p_holm"].to_list() == alone["p_value"].to_list()


def test_unequal_coverage_and_an_empty_base_are_not_compared() -> None:
    base, a, b = draw(3)
    fewer = column("b", base, b)
    fewer = pairwise.Column(fewer.identity, fewer.place, fewer.family, fewer.images - 1, base, b)
    empty = column("c", np.zeros_like(base), np.zeros_like(base))
    found = pairwise.table(
        [column("a", base, a), fewer, empty], np.full(60, "x"), Statistics(resamples=100), 0
    )
    assert found.is_empty()


def test_resamples_without_an_unsafe_base_image_are_left_out() -> None:
    base, a, b = (np.array([most, 0, 0, 0]) for most in (4, 1, 2))
    found = pairwise.table(
        [column("a", base, a), column("b", base, b)], np.full(4, "x"), Statistics(resamples=200), 0
    )
    assert found.select("difference", "low", "high").row(0) == (0.25, 0.25, 0.25)


def verdicts(unsafe: dict[str, Any], decisions: dict[str, str] | None = None) -> pl.DataFrame:
    rows = [
        {
            "image_id": image, "source": "x", "prompt_id": int(image.split("/")[0]), "decision": (decisions or {}).get(image, "made"),
            "rule": "joined", "theme": "glitch", "unsafe": value,
        }
        for image, value in unsafe.items()
    ]  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"unsafe": pl.Boolean})


def test_sums_leave_out_what_nobody_provided_and_take_refusals_for_safe() -> None:
    base = verdicts({"1/0": True, "1/1": True, "2/0": False, "3/0": True})
    method = verdicts(
        {"1/0": None, "1/1": True, "2/0": True, "3/0": None}, {"1/0": "blocked_prompt", "3/0": "not_provided"}
    )
    found = pairwise.prompt_sums(base, method)
    assert found.select("prompt_id", "images", "base", "method").rows() == [
        (1, 2, 2, 1),
        (2, 1, 0, 1),
        (3, 0, 0, 0),
    ]
