"""Put the trained parts together as checkpoint folders and say how large they are."""

import json
from pathlib import Path

from palimpsest.world.assemble import assemble

spec = snakemake  # noqa: F821  (Snakemake provides this name)
target = Path(spec.output[0])
sizes = assemble(Path(spec.params.build), target.parent)
target.write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
