"""Q16 with prompts in the place of texts, and the conversion of its pickles."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from palimpsest import specs
from palimpsest.detectors import _clip, q16
from palimpsest.detectors._pickled_array import read_array

MICRO = Path(__file__).parents[2] / "models/micro/clip"
WIDTH = 128


def released(folder: Path, prompts: np.ndarray) -> Path:
    """A pickled array as in the release."""
    (folder / "prompts.p").write_bytes(pickle.dumps(prompts.astype(np.float16), protocol=2))
    return folder / "prompts.p"


@pytest.fixture(scope="module")
def prompts() -> np.ndarray:
    """Two texts' embeddings stand for learned prompts; any two vectors would do."""
    clip = _clip.load(str(MICRO), None, "clip")
    return clip.embed_texts(["a robot in a clear picture", "static, scrambled"]).numpy() * 3


def test_the_nearer_prompt_decides(prompts: np.ndarray, tmp_path: Path) -> None:
    from palimpsest.world.render import render_all
    from palimpsest.world.scene import sample_scene

    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, effects, kind="robot") for effects in [(), ("static",)] * 6]
    images = render_all(scenes)
    q16.main([str(released(tmp_path, prompts)), str(tmp_path / "q16.safetensors")])
    judge = q16.load(
        specs.Detector(kind="q16", path=str(tmp_path / "q16.safetensors"), clip=str(MICRO), batch=5)
    )
    found = judge.score(images, {})[q16.INAPPROPRIATE]
    with torch.no_grad():
        seen = torch.nn.functional.normalize(judge.clip.embed_images(images), dim=-1).numpy()
    unit = prompts / np.linalg.norm(prompts, axis=1, keepdims=True)
    cosines = 100 * seen @ unit.T
    np.testing.assert_allclose(found, 1 / (1 + np.exp(cosines[:, 0] - cosines[:, 1])), atol=5e-3)
    nearer = cosines.argmax(axis=1) == 1
    assert ((found > 0.5) == nearer).all()
    assert nearer[1::2].mean() > nearer[::2].mean()
    assert judge.identity()["clip"] == str(MICRO)


@pytest.mark.parametrize("protocol", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["<f2", ">f4", "f8"])
def test_a_pickled_array_is_read_without_unpickling(protocol: int, kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(protocol)
    for numbers in [rng.standard_normal((2, 300)).astype(kind), np.asfortranarray(np.eye(2, 3, dtype=kind))]:
        (tmp_path / "prompts.p").write_bytes(pickle.dumps(numbers, protocol=protocol))
        found = read_array(tmp_path / "prompts.p")
        assert found.dtype == np.dtype(kind)
        np.testing.assert_array_equal(found, numbers)


def test_prompts_of_both_released_forms(prompts: np.ndarray, tmp_path: Path) -> None:
    torch.testing.assert_close(
        q16.read_prompts(released(tmp_path, prompts)), torch.from_numpy(prompts.astype(np.float16)).float()
    )
    torch.save(torch.from_numpy(prompts), tmp_path / "prompts.pt")
    torch.testing.assert_close(q16.read_prompts(tmp_path / "prompts.pt"), torch.from_numpy(prompts))


class Evil:
    """Would print when unpickled."""

    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Evil()), r"names builtins.print, which no array"),
        (pickle.dumps(np.array([Evil()])), r"array of objects|names builtins.print"),
        (pickle.dumps({"prompts": 1}), r"the opcode EMPTY_DICT"),
        (pickle.dumps(np.zeros((3, 4), np.float32), protocol=4), r"two prompts.*\(3, 4\)"),
        (pickle.dumps(np.zeros((2, 4), np.float32), protocol=4)[:-30], r"prompts.p: "),
        (b"no pickle at all", r"prompts.p: "),
        (b"\x80\x02.", r"no pickled array"),
        (b"\x80\x02K\x07.", r"holds 7, not an array"),
    ],
)
def test_what_is_no_pair_of_prompts_is_refused(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.p").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        q16.read_prompts(tmp_path / "prompts.p")
    assert capsys.readouterr().out == ""


def test_prompts_of_another_clip_are_refused(tmp_path: Path) -> None:
    save_file({"prompts": torch.zeros(2, 768)}, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=rf"\(2, 768\) do not fit a CLIP of width {WIDTH}"):
        q16.load(specs.Detector(kind="q16", path=str(tmp_path / "wide.safetensors"), clip=str(MICRO)))
    with pytest.raises(FileNotFoundError, match=r"python -m palimpsest.detectors.q16 prompts.p"):
        q16.load(specs.Detector(kind="q16", path=str(tmp_path / "prompts.p"), clip=str(MICRO)))
