"""SD is the checkpoint itself."""

from __future__ import annotations

from palimpsest.methods import registry, sd
from palimpsest.methods.contract import Artifact
from tests import tiny
from tests.methods.erasing import TARGET


def test_the_base_is_the_pipeline_itself():
    pipeline = tiny.build()
    assert sd.apply(pipeline, Artifact(), TARGET, registry.settings("sd", "default")) is pipeline
