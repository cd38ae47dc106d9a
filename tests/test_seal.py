"""The checksum inside an artifact: any changed byte, in any format, is noticed."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from palimpsest import seal, store

META = {"key": "k", seal.NAME: seal.OPEN}


def write(path: Path) -> None:
    if path.suffix == ".parquet":
        store.write_parquet(pl.DataFrame({"x": [1, 2, 3], "y": ["a", None, "c"]}), path, META)
    elif path.suffix == ".safetensors":
        torch = pytest.importorskip("torch")
        store.write_tensors({"w": torch.arange(4.0)}, path, META)
    else:
        store.write_json({"value": [1, 2], "meta": META}, path)


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors", ".json"])
def test_every_single_byte_counts(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"whole{suffix}"
    write(path)
    seal.check(path)
    whole, bad = path.read_bytes(), tmp_path / f"bad{suffix}"
    for at in range(len(whole)):
        bad.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(seal.Broken):
            seal.check(bad)
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:size])
        with pytest.raises(seal.Broken):
            seal.check(bad)


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors", ".json"])
def test_equal_content_gives_equal_bytes(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        write(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_file_without_a_seal_is_written_as_it_is_and_vouched_for_by_nobody(tmp_path: Path) -> None:
    path = tmp_path / "plain.json"
    store.write_json({"a": 1}, path)
    assert path.read_text() == '{\n "a": 1\n}\n'
    with pytest.raises(seal.Broken, match="no seal"):
        seal.check(path)
