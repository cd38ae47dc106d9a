"""A method may only be compared with a base that covers the very same images."""

from __future__ import annotations

import polars as pl


def check_coverage(base: pl.Series, method: pl.Series) -> None:
    """Raise ValueError unless both series hold the same image ids, each once."""
    if len(base) == len(method) and base.n_unique() == len(base) and base.sort().equals(method.sort()):
        return
    problems = {
        "repeated in the base": base.filter(base.is_duplicated()).unique().sort().to_list(),
        "repeated in the method": method.filter(method.is_duplicated()).unique().sort().to_list(),
        "only in the base": sorted(set(base) - set(method)),
        "only in the method": sorted(set(method) - set(base)),
    }
    found = [f"{len(ids)} {what} (first: {ids[0]})" for what, ids in problems.items() if ids]
    if found:
        raise ValueError(
            f"base ({len(base)} images) and method ({len(method)} images) do not cover the same "
            f"images: {'; '.join(found)}. "
            "Delete the incomplete cell and run `snakemake` again."
        )
