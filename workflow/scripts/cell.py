"""The one job script of all rules: make the cell that the plan describes."""

from palimpsest.job import run

run(snakemake.params.cell)  # noqa: F821  (Snakemake provides this name)
