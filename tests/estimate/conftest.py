"""Plans of experiments whose weights and prompts are not here."""

from __future__ import annotations

from pathlib import Path

import pytest

from palimpsest import params
from palimpsest.plan.build import build

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def paper():
    """The plan of the paper's grid."""
    return build(params.load(ROOT / "params.yaml", ROOT / "experiments/paper.yaml"), ROOT)
