"""FID's Inception against torchvision's, with the three differences put in; and the two ways to resize."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from palimpsest.metrics import _inception_network, convert, inception, measuring

RNG = np.random.default_rng(2)


def test_the_network_is_torchvisions_but_for_its_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("torchvision.models.inception")
    torch.manual_seed(0)
    reference = theirs.Inception3(num_classes=1008, aux_logits=False, init_weights=False).eval()
    for name, value in reference.state_dict().items():
        if name.endswith("conv.weight"):
            value.normal_(std=(2 / value[0].numel()) ** 0.5)  # a signal that survives fifty layers
    plain = functional.avg_pool2d
    last = []

    def pool(x: torch.Tensor, kernel_size: int, stride: int, padding: int = 0) -> torch.Tensor:
        if last:
            return functional.max_pool2d(x, kernel_size, stride, padding)
        return plain(x, kernel_size, stride, padding, count_include_pad=False)

    reference.Mixed_7c.register_forward_pre_hook(lambda *_: last.append(True))
    features = []
    reference.avgpool.register_forward_hook(lambda _m, _i, out: features.append(out.flatten(1)))
    monkeypatch.setattr(theirs.F, "avg_pool2d", pool)
    pixels = torch.rand(1, 3, 299, 299) * 2 - 1
    with torch.no_grad():
        reference(pixels)
    monkeypatch.undo()
    network = _inception_network.Inception().eval()
    network.load_state_dict(_inception_network.state_of(reference.state_dict()))
    with torch.no_grad():
        found = network(pixels)
    assert found.shape == (1, 2048)
    assert torch.allclose(found, features[0], rtol=1e-4, atol=1e-5)
    assert found.std() > 1e-3


def test_pytorch_fids_way_to_resize_has_no_antialiasing() -> None:
    image = RNG.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    found = inception.prepared_pytorch([image])
    assert found.shape == (1, 3, 299, 299)
    where = (np.arange(299) + 0.5) * 512 / 299 - 0.5
    low = np.floor(where).astype(int)
    share = where - low
    rows = image[low].astype(float) * (1 - share)[:, None, None] + image[low + 1] * share[:, None, None]
    both = rows[:, low] * (1 - share)[None, :, None] + rows[:, low + 1] * share[None, :, None]
    assert found[0].permute(1, 2, 0).numpy() == pytest.approx(both / 255 * 2 - 1, abs=1e-4)


def test_clean_fids_way_is_antialiased_and_in_float() -> None:
    image = RNG.integers(90, 160, (512, 512, 3), dtype=np.uint8)  # nothing near black or white is cut off
    clean, plain = inception.prepared_clean([image]), inception.prepared_pytorch([image])
    assert clean.std() < 0.75 * plain.std()  # noise is averaged away
    whole = np.asarray(Image.fromarray(image).resize((299, 299), Image.Resampling.BICUBIC))
    levels = clean[0].permute(1, 2, 0).numpy() * 128 + 128
    assert np.abs(levels - whole).max() <= 1.01  # rounded to whole levels in the usual way, not here
    assert (levels != np.round(levels)).any()
    checker = np.indices((400, 400)).sum(axis=0) // 40 % 2
    edges = inception.prepared_clean([np.repeat(checker[..., None] * 255, 3, axis=2).astype(np.uint8)])
    assert edges.max() > (255 - 128) / 128 + 1e-3  # overshoot at edges is kept, where bytes would cut it off


def test_pictures_of_several_sizes_can_be_resized_one_by_one_only() -> None:
    images = [np.zeros((64, 64, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)]
    assert inception.prepared_clean(images).shape == (2, 3, 299, 299)
    with pytest.raises(ValueError, match=r"different sizes .*\(32, 32, 3\), \(64, 64, 3\)"):
        inception.prepared_pytorch(images)


def test_without_weights_the_command_is_named_and_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(measuring.MissingWeights, match=r"convert inception PTH --out .*nothing"):
        inception.load(inception.Settings(path=str(tmp_path / "nothing")))
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"no weights of FID's Inception: \d+ tensors missing"):
        convert.convert("inception", [tmp_path / "resnet.pth"], tmp_path / "out.safetensors")


def test_a_pickle_with_code_in_it_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": np.float64}, tmp_path / "code.pth")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        convert.convert("inception", [tmp_path / "code.pth"], tmp_path / "out.safetensors")
