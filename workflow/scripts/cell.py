"""The one job script of all rules: make the cell that the plan describes."""

import sys
from pathlib import Path

from palimpsest import devices, forkserver

job_log = Path(snakemake.log[0])  # noqa: F821  (Snakemake provides this name)
devices.take(int(snakemake.resources.get("gpu") or 0))  # noqa: F821
status = forkserver.do(snakemake.params.cell, job_log)  # noqa: F821
if status != 0:
    how = f"was killed by signal {-status}" if status < 0 else "failed"
    sys.exit(f"the job {how}; see {job_log}")
