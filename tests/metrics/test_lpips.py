"""LPIPS against the lpips package, whose backbone gets the same random weights; and what tells the three forms apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from palimpsest.metrics import _lpips_network, convert, lpips, measuring

RNG = np.random.default_rng(0)
REFERENCE = pytest.importorskip("lpips")


def picture(height: int = 96, width: int = 96) -> np.ndarray:
    coarse = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def package(network: str, folder: Path) -> tuple[object, Path]:
    """The package's network with a random backbone, and our weights file made from it by the converter."""
    torch.manual_seed(3)
    theirs = REFERENCE.LPIPS(net=network, pnet_rand=True, verbose=False).eval()
    backbone = {
        f"features.{name.split('.', 1)[1]}": value
        for name, value in theirs.net.state_dict().items()
        if name.startswith("slice")
    }
    torch.save({**backbone, "classifier.1.weight": torch.zeros(2)}, folder / "backbone.pth")
    linear = Path(REFERENCE.__file__).parent / "weights" / "v0.1" / f"{network}.pth"
    target = folder / f"{network}.safetensors"
    names = convert.convert("lpips", [folder / "backbone.pth", linear], target, network)
    assert "classifier.1.weight" not in names
    return theirs, target


@pytest.fixture(scope="module")
def alex(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, Path]:
    return package("alex", tmp_path_factory.mktemp("alex"))


@pytest.mark.first_case
@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_distances_are_the_packages_own(network: str, tmp_path: Path) -> None:
    theirs, path = package(network, tmp_path)
    ours = _lpips_network.load_network(path, network)
    a, b = torch.rand(3, 3, 64, 64) * 2 - 1, torch.rand(3, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = theirs(a, b).flatten()  # type: ignore[operator]
        found = ours(a, b)
    assert torch.allclose(found, expected, rtol=1e-4)
    assert found.min() > 0
    assert ours.distance(a.numpy(), a.numpy()).max() == 0


def prepared(image: np.ndarray, side: int, signed: bool) -> torch.Tensor:
    squeezed = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.asarray(squeezed)).permute(2, 0, 1).float() / 255
    return (values * 2 - 1 if signed else values)[None]


@pytest.mark.parametrize(
    ("form", "side", "signed"),
    [("lpips_drift", 64, True), ("lpips_real", 256, True), ("lpips_paper", 128, False)],
)
def test_each_form_is_the_package_on_pictures_prepared_as_it_says(
    alex: tuple[object, Path], form: str, side: int, signed: bool
) -> None:
    theirs, path = alex
    measure = lpips.load(lpips.Settings(path=str(path), forms=(form,), batch=1))
    ours, other = [picture(), picture(64, 128)], [picture(), picture(48, 48)]
    slot = "base" if form == "lpips_drift" else "real"
    found = measure.measure(measuring.Pictures(ours, ["", ""], **{slot: other}))[form]
    with torch.no_grad():
        expected = [
            float(theirs(prepared(a, side, signed), prepared(b, side, signed)))  # type: ignore[operator]
            for a, b in zip(ours, other, strict=True)
        ]
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_papers_range_gives_another_number(alex: tuple[object, Path]) -> None:
    measure = lpips.load(lpips.Settings(path=str(alex[1])))
    pictures = measuring.Pictures([picture()], [""], real=[picture()])
    network = measure.network
    paper = measure.distances("lpips_paper", pictures)
    a, b = (prepared(image, 128, True).numpy() for image in (pictures.images[0], pictures.real[0]))
    assert abs(network.distance(a, b)[0] - paper[0]) > 1e-3


def test_what_has_no_counterpart_has_no_distance(alex: tuple[object, Path]) -> None:
    measure = lpips.load(lpips.Settings(path=str(alex[1]), forms=("lpips_drift", "lpips_drift_256")))
    image = picture(300, 300)
    found = measure.measure(
        measuring.Pictures([image, image, image], [""] * 3, base=[image, None, picture(300, 300)])
    )
    for values in found.values():
        assert values[0] == pytest.approx(0, abs=1e-6)
        assert np.isnan(values[1])
        assert values[2] > 0


def test_needs_follow_the_forms() -> None:
    assert lpips.needs(lpips.Settings(path="x")) == {"base"}
    assert lpips.needs(lpips.Settings(path="x", forms=("lpips_paper", "lpips_drift"))) == {"base", "real"}


def test_without_weights_the_command_that_makes_them_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        measuring.MissingWeights, match=r"convert lpips BACKBONE.pth LINEAR.pth --out .*nothing"
    ):
        lpips.load(lpips.Settings(path=str(tmp_path / "nothing")))


def test_other_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(4)}, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=r"features.0.weight \(\(4,\)\), features.0.bias \(missing\)"):
        convert.convert("lpips", [tmp_path / "wrong.pth"], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    torch.save([torch.zeros(4)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="no state dict of tensors"):
        convert.convert("lpips", [tmp_path / "list.pth"], tmp_path / "out.safetensors")
