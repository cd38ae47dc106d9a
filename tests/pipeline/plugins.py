"""Methods as somebody would add them, small enough to run in a second: each makes the images darker in its own way."""

from __future__ import annotations

_HEAD = '''"""{what}"""

from palimpsest.methods._shade import shaded
from palimpsest.methods.contract import Artifact, Info
from palimpsest.specs import Strict

INFO = Info(
    name="{name}", title="{title}", stage="closed form", trains="nothing", fits={fits}, paper="none", bibtex="", code="none",
    licence="none", fidelity="external",
)


class Settings(Strict):
    """No knobs."""
'''

# A helper that two methods share.
SHADE = '''"""A bias of the image decoder, made darker."""

NAME = "decoder.conv_out.bias"


def shaded(pipeline, amount):
    """The bias with `amount` taken away."""
    return {NAME: pipeline.vae.decoder.conv_out.bias.detach() - amount}
'''

# Fits: the darker bias is its artifact.
DIM = (
    _HEAD.format(what="Dim.", name="dim", title="Dim", fits=True)
    + '''

def fit(pipeline, target, data, settings, seed):
    """Darken a little."""
    return Artifact(shaded(pipeline, 0.05), {"unet_evaluations": 0, "losses": []})


def apply(pipeline, artifact, target, settings):
    """The pipeline with the fitted bias."""
    return pipeline.with_weights("vae", artifact.tensors)
'''
)

# Fits nothing.
DUSK = (
    _HEAD.format(what="Dusk.", name="dusk", title="Dusk", fits=False)
    + '''

def fit(pipeline, target, data, settings, seed):
    """Nothing to fit."""
    return Artifact(meta={"unet_evaluations": 0, "losses": []})


def apply(pipeline, artifact, target, settings):
    """Darker by a tenth."""
    return pipeline.with_weights("vae", shaded(pipeline, 0.1))
'''
)

# One more.
NIGHT = DUSK.replace("Dusk", "Night").replace("dusk", "night").replace("0.1)", "0.3)")

# Its jobs wait, each saying so by a file with its process id, until there is a file `go`.
WAITS = (
    NIGHT.replace("Night", "Waits")
    .replace("night", "waits")
    .replace(
        "from palimpsest.methods._shade",
        "import os\nimport time\nfrom pathlib import Path\n\nfrom palimpsest.methods._shade",
    )
    .replace(
        "    return pipeline.with_weights",
        """    Path(f"waiting.{os.getpid()}").touch()
    while not Path("go").exists():
        time.sleep(0.02)
    return pipeline.with_weights""",
    )
)
