"""Toxicity against verdicts, ranks against scipy, intervals of EP from counts alone."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from palimpsest.metrics import ranks, toxicity, unpaired
from palimpsest.metrics.intervals import wilson


@pytest.mark.parametrize("seed", range(4))
def test_rank_correlation_is_that_of_scipy_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 9, 40).tolist()
    b = (np.array(a) * 0.4 + rng.normal(0, 2, 40)).round().tolist()
    found = ranks.rank_correlation(a, b)
    assert found is not None
    assert found[0] == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert found[1] < found[0] < found[2]


def test_the_interval_of_a_rank_correlation_holds_the_truth() -> None:
    rng, truth, hits = np.random.default_rng(0), 0.4, 0
    rho = 6 / math.pi * math.asin(truth / 2)  # Spearman's of a normal pair with this correlation
    for _ in range(300):
        a = rng.normal(size=80)
        b = truth * a + math.sqrt(1 - truth**2) * rng.normal(size=80)
        found = ranks.rank_correlation(a.tolist(), b.tolist())
        assert found is not None
        hits += found[1] <= rho <= found[2]
    assert 0.91 <= hits / 300 <= 0.98


def test_no_correlation_without_spread_or_with_few_pairs() -> None:
    assert ranks.rank_correlation([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]) is None
    assert ranks.rank_correlation([1, 2, 3, 4], [1, 2, 3, 4]) is None
    assert ranks.rank_correlation([1, 2, 3, 4, 5], [5, 4, 3, 2, 1]) == (-1.0, -1.0, -1.0)
    with pytest.raises(ValueError, match="5 and 1"):
        ranks.rank_correlation([1, 2, 3, 4, 5], [1])


# half-widths in percentage points, worked out by hand from the counts behind the published tables
@pytest.mark.parametrize(
    ("n", "base", "left", "half"),
    [(8015, 3933, 3719, 3.07), (8015, 3933, 3715, 3.06), (8015, 3933, 1157, 1.70), (1500, 662, 698, 8.29)],
)
def test_intervals_from_counts_match_those_worked_out(n: int, base: int, left: int, half: float) -> None:
    low, high = unpaired.ep_interval(n, base, left)
    assert 100 * (high - low) / 2 == pytest.approx(half, abs=0.006)
    assert (low + high) / 2 == pytest.approx(1 - left / base)


def test_no_interval_from_counts_without_unsafe_images() -> None:
    assert all(map(math.isnan, unpaired.ep_interval(100, 10, 0)))
    assert all(map(math.isnan, unpaired.ep_interval(100, 0, 3)))
    with pytest.raises(ValueError, match="n_unsafe=101"):
        unpaired.ep_interval(100, 10, 101)


def tables(
    toxicities: list[float], unsafe: list[bool | None], source: str = "x"
) -> tuple[pl.DataFrame, pl.DataFrame]:
    ids = [f"{source}/{i:02d}/0" for i in range(len(unsafe))]
    prompts = pl.DataFrame({"image_id": ids, "toxicity": toxicities})
    verdicts = pl.DataFrame(
        {"image_id": ids, "source": source, "prompt_id": range(len(ids)), "theme": "any", "unsafe": unsafe}
    )
    return prompts, verdicts


def test_bins_begin_at_their_lower_edge_and_the_last_holds_one() -> None:
    prompts, verdicts = tables([0.0, 0.19, 0.2, 0.49, 0.5, 1.0], [True, False, True, True, False, False])
    rows = {r["bin"]: r for r in toxicity.table(prompts, verdicts) if r["dataset"] == "overall"}
    assert {name: (r["n"], r["n_unsafe"]) for name, r in rows.items()} == {
        "all": (6, 3), "0 to 0.2": (2, 1), "0.2 to 0.5": (2, 2), "0.5 to 1": (2, 0),
    }  # fmt: skip
    assert (rows["0.2 to 0.5"]["share_low"], rows["0.2 to 0.5"]["share_high"]) == wilson(2, 2)
    assert rows["all"]["correlation"] == pytest.approx(
        stats.spearmanr([0.0, 0.19, 0.2, 0.49, 0.5, 1.0], [1, 0, 1, 1, 0, 0])[0]
    )
    assert rows["0 to 0.2"]["correlation"] is None


def test_images_without_toxicity_or_verdict_are_left_out_and_data_sets_stand_apart() -> None:
    one, judged = tables([0.1, 0.6, 0.7], [True, None, False])
    two, other = tables([0.9, 0.8], [True, True], "y")
    prompts = pl.concat(
        [one.with_columns(toxicity=pl.when(pl.col("toxicity") > 0.65).then(None).otherwise("toxicity")), two]
    )
    rows = toxicity.table(prompts, pl.concat([judged, other]))
    counts = {(r["dataset"], r["bin"]): r["n"] for r in rows}
    assert counts == {
        ("x", "all"): 1, ("x", "0 to 0.2"): 1, ("y", "all"): 2, ("y", "0.5 to 1"): 2,
        ("overall", "all"): 3, ("overall", "0 to 0.2"): 1, ("overall", "0.5 to 1"): 2,
    }  # fmt: skip


def test_many_images_of_one_prompt_widen_the_interval() -> None:
    ids = [f"x/{p}/{r}" for p in range(10) for r in range(20)]
    prompts = pl.DataFrame({"image_id": ids, "toxicity": [0.1] * 200})
    verdicts = pl.DataFrame(
        {
            "image_id": ids,
            "source": "x",
            "prompt_id": [p for p in range(10) for _ in range(20)],
            "theme": "any",
            "unsafe": [p % 2 == 0 for p in range(10) for _ in range(20)],
        }
    )
    row = next(r for r in toxicity.table(prompts, verdicts) if r["bin"] == "all")
    low, high = wilson(100, 200)
    assert row["n_prompts"] == 10
    assert row["share_high"] - row["share_low"] > 3 * (high - low)
