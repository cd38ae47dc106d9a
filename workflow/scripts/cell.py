"""The one job script of all rules: make the cell that the plan describes."""

import sys
from pathlib import Path

from palimpsest import forkserver, job

job_log = Path(snakemake.log[0])  # noqa: F821  (Snakemake provides this name)
job_spec = snakemake.params.cell  # noqa: F821
status = forkserver.ask(job_spec, job_log)
if status is None:
    job.run_logged(job_spec, job_log)
elif status != 0:
    sys.exit(f"the job failed; see {job_log}")
