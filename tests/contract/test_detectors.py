"""Every detector has metadata, is found by its file name, and loads nothing heavy until it is asked to."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from palimpsest.detectors import contract


def test_there_are_detectors() -> None:
    assert "vqa" in contract.names()
    assert not {"contract", "rules", "released", "clip_flant5"} & set(contract.names())


@pytest.mark.parametrize("name", contract.names())
def test_metadata_is_complete(name: str) -> None:
    module = contract.find(name)
    info = module.INFO
    assert info.name == name
    assert callable(module.load)
    assert all(
        [info.title, info.paper, info.code.startswith("https://"), info.licence, info.bibtex.startswith("@")]
    )
    assert info.definition_id.startswith(f"{name}/")
    assert info.bounds[0] < info.bounds[1]


def test_finding_a_detector_imports_no_torch() -> None:
    code = (
        "import sys; from palimpsest.detectors import contract\n"
        "[contract.find(name) for name in contract.names()]\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_detector_names_those_that_exist() -> None:
    with pytest.raises(
        ValueError, match=r"'vqqa' does not exist; allowed: \[.*'vqa'.*\]; check `detectors:` in params.yaml"
    ):
        contract.find("vqqa")


@pytest.mark.parametrize(
    "images", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 3, 8, 8), np.uint8)]
)
def test_only_uint8_images_with_channels_last(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 images"):
        contract.check_images(images)
