"""Train one part of the micro world; a job that was stopped goes on from its last checkpoint."""

import contextlib
from pathlib import Path

from palimpsest.world import train

spec = snakemake  # noqa: F821  (Snakemake provides this name)
# Outputs lie in <part>/<model folder>/<file>; Snakemake removes only the file, so checkpoints in <part>/ survive a restart.
out = Path(spec.output[0]).parents[1]
arguments = [
    spec.params.model,
    "--out",
    str(out),
    "--seed",
    str(spec.params.seed),
    "--threads",
    str(spec.threads),
]
for part in ("autoencoder", "clip", "unet"):
    path = getattr(spec.input, part, None)
    if path is not None:
        arguments += [f"--{part}", str(Path(str(path)).parent)]
with (
    open(spec.log[0], "a", encoding="utf-8") as log,
    contextlib.redirect_stdout(log),
    contextlib.redirect_stderr(log),
):
    train.main(arguments)
